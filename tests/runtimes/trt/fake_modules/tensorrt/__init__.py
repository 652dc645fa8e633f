"""What `import tensorrt` finds while a test has this folder on its path."""

from tests.runtimes.trt.fake_tensorrt import *
from tests.runtimes.trt.fake_tensorrt import __version__
