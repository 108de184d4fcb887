// The kernels, written once over a vector type. avx2.cc, avx512.cc and neon.cc each define that type, `Vec`, in an
// anonymous namespace and include this file into it, so that no instantiation is shared between files compiled for
// different processors; for the same reason nothing here calls an inline function of the standard library.
//
// Vec gives: kLanes; kScoreHeads, kKeysInRegisters, kSums, kOneHeadSums, kSumHeads, kPanelVectors (register tiles);
// Float and the operations used here. LoadPart(p, n) fills lanes n and beyond with 0. Both kinds of Load take float or
// half (uint16_t) rows.

#ifndef DELTALLM_VECTOR_KERNELS_INSIDE
#error "Include this file from a kernel source, inside its anonymous namespace."
#endif

constexpr int64_t kLanes = Vec::kLanes;
using Float = Vec::Float;

inline int64_t Min(int64_t a, int64_t b) { return a < b ? a : b; }

#include "kernels/vector_matmul.h"
#include "kernels/vector_products.h"
#include "kernels/vector_softmax.h"
#include "kernels/vector_prefill.h"

constexpr Kernels MakeKernels(const char* isa) {
  return {isa,
          ScoreRows<float>,
          ScoreRows<uint16_t>,
          AddRows<float>,
          AddRows<uint16_t>,
          Maximum,
          Exp2AndSum,
          MultiplyTokensAndSum,
          Softcap,
          Scale,
          HalfToFloatRow,
          FloatToHalfRow};
}
