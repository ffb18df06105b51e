#pragma once
#include "vgpu/cluster.h"
