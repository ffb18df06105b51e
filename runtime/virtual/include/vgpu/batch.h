// A run of ldmatrix and mma.sync with nothing between them, at one meeting of the warp's lanes.
//
// batching.py finds such runs in the CUDA text of a kernel; only run builds use them. Addresses of
// registers are those of local arrays, at one place in every lane's frame, so one lane's list of
// instructions serves all.
#pragma once
#include "vgpu/mma.h"

namespace vgpu {

struct BatchState;

struct BatchedInstruction {
  void (*perform)(BatchState& state, const BatchedInstruction& me);
  void* target;  // registers written, of the lane that made the list
  const void *a, *b;
};

struct BatchOperand {
  char* frame;  // any place in the lane's frame, the same for all
  const BatchedInstruction* begin;
  const BatchedInstruction* end;  // of lane 0's list; the others' are empty
  void* const* rows;              // of its ldmatrix, in order
};

// Fragments as vectors, from the first mma.sync that reads them until an ldmatrix may change them.
struct BatchState {
  static constexpr int kColumns = 16;
  char* frame[kWarp];
  void* const* rows[kWarp];
  int loads = 0;
  void (*type)(BatchState&, const BatchedInstruction&) = nullptr;  // of what is kept
  const void* a_of = nullptr;
  const void* b_of[kColumns] = {};
  int last = 0;
  alignas(32) float a[16][16];
  Float8 b[kColumns][16];

  VGPU_LEAF void forget() {
    type = nullptr;
    a_of = nullptr;
    for (const void*& key : b_of) key = nullptr;
  }

  // Lane 0's place, as a function from lanes to their places.
  VGPU_LEAF auto places(const void* first) const {
    const ptrdiff_t offset = static_cast<const char*>(first) - frame[0];
    return [this, offset](int lane) VGPU_LEAF -> void* { return frame[lane] + offset; };
  }

  template <class Work>
  VGPU_LEAF const Float8 (&columns(const void* of))[16] {
    for (int i = 0; i < kColumns; ++i) {
      last = (last + 1) % kColumns;  // they tend to come in turns
      if (b_of[last] == of) return b[last];
      if (!b_of[last]) break;
    }
    b_of[last] = of;
    Work::load_b(places(of), b[last]);
    return b[last];
  }
};

template <class Work, class = void>
struct BatchedMma {
  VGPU_LEAF static void perform(BatchState& state, const BatchedInstruction& me) {
    MmaOperand operand[kWarp];
    Site site;
    site.arrived = kFullMask;
    const auto c = state.places(me.target), a = state.places(me.a), b = state.places(me.b);
    for (int lane = 0; lane < kWarp; ++lane) {
      operand[lane] = {c(lane), a(lane), b(lane)};
      site.operand[lane] = &operand[lane];
    }
    Work::run(site);
  }
};

template <class Work>
struct BatchedMma<Work, std::enable_if_t<Work::kHalf>> {
  VGPU_LEAF static void perform(BatchState& state, const BatchedInstruction& me) {
    if (state.type != perform) state.forget();
    state.type = perform;
    if (state.a_of != me.a) Work::load_a(state.places(me.a), state.a);
    state.a_of = me.a;
    const Float8(&b)[16] = state.columns<Work>(me.b);
    Float8 c[16];
    Work::load_c(state.places(me.target), c);
    multiply_wide(state.a, b, c);
    Work::store_c(state.places(me.target), c);
  }
};

template <int Count, bool Transposed>
VGPU_LEAF inline void batched_load(BatchState& state, const BatchedInstruction& me) {
  void* rows[8 * Count];
  for (int i = 0; i < 8 * Count; ++i) rows[i] = state.rows[i][state.loads];
  MatrixWork<Count, Transposed, false>::load(rows, state.places(me.target));
  ++state.loads;
  state.forget();
}

struct BatchWork {
  VGPU_LEAF static void run(const Site& site) {
    require_full_warp(site, site.op);
    BatchState state;
    for (int lane = 0; lane < kWarp; ++lane) {
      const auto& operand = operand_of<BatchOperand>(site, lane);
      state.frame[lane] = operand.frame;
      state.rows[lane] = operand.rows;
    }
    const auto& list = operand_of<BatchOperand>(site, 0);
    for (const BatchedInstruction* i = list.begin; i != list.end; ++i) i->perform(state, *i);
  }
};

// Speaks TileLang's names: `tl::mma_sync<…>(…)` becomes `vgpu_batch.mma_sync<…>(…)`.
template <int Instructions, int Loads>
class Batch {
 public:
  // `name` tells batches apart: lanes of a warp may not be in two of them.
  explicit Batch(const char* name) : name_(name), lists_(vgpu_self().lane == 0) {}

  template <tl::DataType A, tl::DataType B, tl::DataType C, int M, int N, int K, bool TransA,
            bool TransB, bool Saturate = false, class CRegister, class ARegister, class BRegister>
  void mma_sync(CRegister* c, const ARegister* a, const BRegister* b) {
    using Work = typename MmaInstruction<A, B, C, M, N, K, TransA, TransB, Saturate, ARegister,
                                         BRegister>::Work;
    if (lists_) instruction_[count_++] = {BatchedMma<Work>::perform, c, a, b};
  }

#define VGPU_BATCHED_LDMATRIX(NAME, COUNT, TRANSPOSED)                                      \
  void ptx_ldmatrix_##NAME(const void* row, void* registers) {                              \
    load(batched_load<COUNT, TRANSPOSED>, row, registers);                                  \
  }
  VGPU_BATCHED_LDMATRIX(x1, 1, false)
  VGPU_BATCHED_LDMATRIX(x2, 2, false)
  VGPU_BATCHED_LDMATRIX(x4, 4, false)
  VGPU_BATCHED_LDMATRIX(x1_trans, 1, true)
  VGPU_BATCHED_LDMATRIX(x2_trans, 2, true)
  VGPU_BATCHED_LDMATRIX(x4_trans, 4, true)
#undef VGPU_BATCHED_LDMATRIX

  void run() {
    BatchOperand operand{reinterpret_cast<char*>(this), instruction_, instruction_ + count_, row_};
    rendezvous<BatchWork>(name_, kFullMask, operand);
  }

 private:
  void load(void (*perform)(BatchState&, const BatchedInstruction&), const void* row,
            void* registers) {
    row_[loads_++] = const_cast<void*>(row);
    if (lists_) instruction_[count_++] = {perform, registers, nullptr, nullptr};
  }

  const char* name_;
  bool lists_;
  int count_ = 0, loads_ = 0;
  BatchedInstruction instruction_[Instructions];
  void* row_[Loads ? Loads : 1];
};

}  // namespace vgpu
