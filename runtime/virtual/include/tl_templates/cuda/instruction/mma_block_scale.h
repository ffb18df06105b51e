#pragma once
#include "vgpu/mma.h"
