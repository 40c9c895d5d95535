#include "cuda/temporal.cu"
