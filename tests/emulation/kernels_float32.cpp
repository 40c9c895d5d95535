#include "cuda/float32.cu"
