#pragma once
#include "vgpu/barrier.h"
