"""The TensorFlow backend of batchkit: ``Loader(pipe, backend="tensorflow")``.

Importing this package imports no TensorFlow; :mod:`batchkit_tensorflow.backend` does.
"""
