#pragma once
#include "vgpu/atomic.h"
