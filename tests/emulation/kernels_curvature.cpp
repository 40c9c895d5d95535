#include "cuda/curvature.cu"
