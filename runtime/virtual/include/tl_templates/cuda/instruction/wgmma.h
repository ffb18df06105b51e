#pragma once
#include "vgpu/wgmma.h"
