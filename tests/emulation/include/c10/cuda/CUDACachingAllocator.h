// See torch_cuda.h.
#pragma once

#include "torch_cuda.h"
