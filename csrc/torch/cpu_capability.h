// The CPU kernels in use. Layer: torch.
#pragma once

#include "cpu/kernels.h"

namespace actreg {

const cpu::Kernels& cpu_kernels();

}  // namespace actreg
