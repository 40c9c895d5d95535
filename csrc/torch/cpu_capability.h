// Which CPU kernels are in use: those of one instruction set. Layer: torch.
#pragma once

#include "cpu/kernels.h"

namespace actreg {

const cpu::Kernels& cpu_kernels();

}  // namespace actreg
