"""The PyTorch backend of batchkit: ``Loader(pipe, backend="torch")``.

Importing this package imports no PyTorch; :mod:`batchkit_torch.backend` does.
"""
