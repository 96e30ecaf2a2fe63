"""Modules: parameters with names, the layers made of them, and how their weights start."""

from __future__ import annotations

from tensorlite.nn import init
from tensorlite.nn.layers import BatchNorm2d, Conv2d, Dropout, Linear, ReLU, conv_norm
from tensorlite.nn.module import LoadReport, Module, ModuleList, Parameter, Sequential
from tensorlite.nn.recurrent import GRU, LSTM

__all__ = [
    "GRU",
    "LSTM",
    "BatchNorm2d",
    "Conv2d",
    "Dropout",
    "Linear",
    "LoadReport",
    "Module",
    "ModuleList",
    "Parameter",
    "ReLU",
    "Sequential",
    "conv_norm",
    "init",
]
