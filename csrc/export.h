// What Python reaches through ctypes is marked with this; everything else stays hidden.
#pragma once
#define EVA_EXPORT extern "C" __attribute__((visibility("default")))
