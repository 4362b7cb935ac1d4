// softmax_job.h: the softmax of a panel's scores (flash_attention/online_softmax.h), in portions that run between tile
// products.
//
// A product occupies the tile unit for 16 cycles and the vector ports for one. After every fourth product the job does
// one portion, four keys × 32 rows: 40 to 200 instructions, few enough to stand in the processor's window together with
// the products around them.
//
//   reference moves with the scores   two visits of every key: transform, mask, find the largest; then weights
//   bounded by a soft cap             one visit: transform, mask, weights
//
// Weights of keys 2i and 2i + 1 are a row of pairs where the scores of key 2i were: Pᵀ is every other row of Sᵀ.
#pragma once
#include "kernels/cpu/flash_attention/prefill.h"
#include "kernels/cpu/flash_attention_amx/tile_keys.h"

namespace lapidary {
namespace {
namespace attention_amx {

static constexpr int kPairRows = 2 * kLanes;                    // rows of a Panel here
static constexpr int64_t kPairStride = int64_t(kPairRows) * 4;  // bytes between rows of Qᵀ, Sᵀ and Oᵀ
static constexpr int kPortionKeys = 4;

// One panel's share of a block of keys. Keys before those it sees, back to a whole group, are masked.
struct PanelKeys {
  Panel* panel;
  int begin, count, groups;
  float* scores;  // Sᵀ, then Pᵀ
};

class SoftmaxJob {
 public:
  // Everything is done after `calls` of advance() and one of finish(). `work` may be empty.
  LAPIDARY_MEMBER_INLINE SoftmaxJob(const Problem& p, const Exponents& e, const TileBlock& block, const PanelKeys& work,
                                    int calls)
      : e_(e), work_(work), weighs_(e.bounded) {
    key_scales_ = p.key_scales && work.groups ? block.key_scales + (work.begin - block.first) : nullptr;
    value_scales_ = p.value_scales && work.groups ? block.value_scales + (work.begin - block.first) : nullptr;
    dim_ = padded(p.head_dim);
    for (int i = 0; i < kPairRows; ++i) largest_[i] = kMinusInfinity;
    const int portions = (work.count + kPortionKeys - 1) / kPortionKeys * (e.bounded ? 1 : 2);
    portions_per_call_ = calls > 0 ? (portions + calls - 1) / calls : 0;
  }

  LAPIDARY_MEMBER_INLINE void advance() {
    if (at_ < work_.count) run(portions_per_call_);
  }
  LAPIDARY_MEMBER_INLINE void finish() { run(2 * kMostTileKeys); }

 private:
  __attribute__((noinline)) void run(int portions) {
    for (; portions > 0 && at_ < work_.count; --portions) {
      const int keys = work_.count - at_ < kPortionKeys ? work_.count - at_ : kPortionKeys;
      if (!weighs_ || e_.bounded) {
        const ScoreBlock<2> scores = {work_.scores + int64_t(at_) * kPairRows, keys};
        transform_scores<Bf16Products>(scores, e_, key_scales_ ? key_scales_ + at_ : nullptr);
        mask_scores(scores, work_.begin + at_, work_.panel->every.begin, work_.panel->every.end,
                    work_.panel->before_low, work_.panel->high);
      }
      weighs_ ? weigh_portion(keys) : scan_portion(keys);
      at_ += keys;
      if (at_ < work_.count) continue;
      if (weighs_) {
        clear_rest();
      } else {
        move_reference();
        weighs_ = true;
        at_ = 0;
      }
    }
  }

  LAPIDARY_MEMBER_INLINE void scan_portion(int keys) {
    F32 first = load(largest_), second = load(largest_ + kLanes);
    for (int j = 0; j < keys; ++j) {
      const float* const row = work_.scores + int64_t(at_ + j) * kPairRows;
      first = max(load(row), first);
      second = max(load(row + kLanes), second);
    }
    store(largest_, first);
    store(largest_ + kLanes, second);
  }

  LAPIDARY_MEMBER_INLINE void move_reference() {
    Panel& panel = *work_.panel;
    alignas(64) float factors[kPairRows];
    const ScoreBlock<2> largest = {largest_, 1};
    if (!move_references<Bf16Products>(largest, e_, panel.references, panel.sums, factors)) return;
    const F32 first = load(factors), second = load(factors + kLanes);
    for (int d = 0; d < dim_; ++d) {
      float* const o = panel.output + int64_t(d) * kPairRows;
      store(o, mul(load(o), first));
      store(o + kLanes, mul(load(o + kLanes), second));
    }
  }

  // attention::weigh() for a few keys, leaving Pᵀ in every other row.
  LAPIDARY_MEMBER_INLINE void weigh_portion(int keys) {
    const F32 factor = set1(e_.factor);
    for (int v = 0; v < kPairRows; v += kLanes) {
      float *const references = work_.panel->references + v, *const sums = work_.panel->sums + v;
      const F32 reference = load(references);
      F32 sum = load(sums);
      for (int j = 0; j < keys; j += 2) {
        float* const row = work_.scores + int64_t(at_ + j) * kPairRows + v;
        F32 weights[2];
        weights[0] = Bf16Products::exponential(fma(load(row), factor, sub(zero(), reference)));
        weights[1] = j + 1 < keys
                         ? Bf16Products::exponential(fma(load(row + kPairRows), factor, sub(zero(), reference)))
                         : zero();
        sum = add(add(sum, weights[0]), weights[1]);
        if (value_scales_) {
          weights[0] = mul(weights[0], set1(value_scales_[at_ + j]));
          weights[1] = mul(weights[1], set1(value_scales_[at_ + j + (j + 1 < keys)]));
        }
        Bf16Products::store_weights(row, weights);
      }
      store(sums, sum);
    }
  }

  // Weights of the keys up to a whole group, which Vᵀ's tiles are.
  LAPIDARY_MEMBER_INLINE void clear_rest() {
    for (int key = (work_.count + 1) / 2 * 2; key < work_.groups * kGroupKeys; key += 2) {
      memset(work_.scores + int64_t(key) * kPairRows, 0, kPairStride);
    }
  }

  const Exponents& e_;
  const PanelKeys work_;
  const float *key_scales_, *value_scales_;
  int dim_, portions_per_call_;
  int at_ = 0;   // key of this visit
  bool weighs_;  // in the visit that makes weights
  alignas(64) float largest_[kPairRows];
};

}  // namespace attention_amx
}  // namespace
}  // namespace lapidary
