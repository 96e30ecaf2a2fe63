"""Recurrent residual networks for action recognition (Iqbal, Richard, Kuehne, Gall; GCPR 2017)."""
