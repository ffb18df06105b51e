#pragma once
#include "vgpu/async.h"
