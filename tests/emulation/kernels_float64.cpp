#include "cuda/float64.cu"
