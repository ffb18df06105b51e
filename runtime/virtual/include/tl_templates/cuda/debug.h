#pragma once
#include "vgpu/debug.h"
