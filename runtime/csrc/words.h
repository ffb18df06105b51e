// Errors in plain words: what came, what was expected.
#pragma once
#include <cstdarg>
#include <cstdio>

#include "launcher.h"

namespace tileproof {

__attribute__((cold, format(printf, 2, 3)))
inline int fail(const char* kind, const char* format, ...) {
  char words[1024];
  va_list values;
  va_start(values, format);
  vsnprintf(words, sizeof words, format, values);
  va_end(values);
  TVMFFIErrorSetRaisedFromCStr(kind, words);
  return -1;
}

struct Text {
  char chars[64];
};

inline Text type_name(DLDataType type) {
  const char* base = "type";
  switch (type.code) {
    case kDLInt: base = "int"; break;
    case kDLUInt: base = "uint"; break;
    case kDLFloat: base = "float"; break;
    case kDLBfloat: base = "bfloat"; break;
    case kDLComplex: base = "complex"; break;
    case kDLBool: return {"bool"};
    case kDLFloat8_e4m3fn: return {"float8_e4m3fn"};
    case kDLFloat8_e5m2: return {"float8_e5m2"};
    case kDLFloat8_e8m0fnu: return {"float8_e8m0fnu"};
    case kDLFloat4_e2m1fn: return {"float4_e2m1fn"};
    default: break;
  }
  Text text;
  if (type.lanes == 1)
    snprintf(text.chars, sizeof text.chars, "%s%d", base, type.bits);
  else
    snprintf(text.chars, sizeof text.chars, "%s%dx%d", base, type.bits, type.lanes);
  return text;
}

inline Text device_name(int type, int id) {
  if (type == kDLCPU) return {"cpu"};
  Text text;
  if (type == kDLCUDA)
    snprintf(text.chars, sizeof text.chars, "cuda:%d", id);
  else
    snprintf(text.chars, sizeof text.chars, "DLPack device type %d", type);
  return text;
}

// What a size must be, in words: "64", "D=64" or "M=7".
inline Text expected_size(const Size& size, int64_t value) {
  Text text;
  const char* label = size.label ? size.label : "";
  snprintf(text.chars, sizeof text.chars, "%s%s%lld", label, size.label ? "=" : "",
           (long long)value);
  return text;
}

inline const char* value_name(int32_t type_index) {
  switch (type_index) {
    case kTVMFFINone: return "None";
    case kTVMFFIInt: return "an int";
    case kTVMFFIBool: return "a bool";
    case kTVMFFIFloat: return "a float";
    case kTVMFFIRawStr:
    case kTVMFFISmallStr:
    case kTVMFFIStr: return "a str";
    default: return "another object";
  }
}

}  // namespace tileproof
