#include "cuda/dispatch.cu"
