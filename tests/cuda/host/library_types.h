// The types of elements that cuBLAS is told, beside cuda_runtime.h.

#pragma once

enum cudaDataType { CUDA_R_32F = 0, CUDA_R_16BF = 14 };
