#pragma once
#include "vgpu/tcgen05.h"
