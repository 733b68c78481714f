// What a kernel is told: the mirror of `src/backend/cuda/params.rs`. A test compares the layouts.
//
// What stays the same from step to step (shapes, formats, code tables, the order of the work) lies
// in device memory that the plan owns, its *table*; offsets into it count bytes. What changes with
// every call (pointers, scalars) is in the parameters of the launch, so a step copies nothing.

#pragma once

namespace lowbit {

constexpr int MAX_AXES = 16;
constexpr int MAX_STATES = 3;

// ---- the table ---------------------------------------------------------------------------------

// Levels and midpoints of one quantizer.
struct Codebook {
  float by_code[256];    // the highest level behind the last
  float midpoints[256];  // infinity behind the last
  int levels;
  int reserved;
};

// What a state consists of.
constexpr int VALUES = 1;  // f32
constexpr int CODES = 2;
constexpr int FACTORS = 3;  // means of v over rows and columns, and of all
constexpr int COVER = 4;    // maxima of the slices along every axis, which are all there is of v (sm3)

// Where the scale of an element comes from.
constexpr int PER_BLOCK = 0;
constexpr int PER_TENSOR = 1;
constexpr int PER_ROW = 2;
constexpr int PER_COLUMN = 3;
constexpr int PER_AXES = 4;  // rank-1: the smallest of the maxima of its slices

// `quant::Rounding`.
constexpr int NEAREST = 0;
constexpr int STOCHASTIC = 1;
constexpr int STOCHASTIC_LOG = 2;
constexpr int STOCHASTIC_PRECONDITIONER = 3;

// What else is done to the values of a block.
constexpr int SUBTRACTIVE_DITHER = 1;
constexpr int SCALE_CORRECTION = 2;

// How one state of a tensor is kept.
struct State {
  int kind;
  int per_byte;  // codes in a byte: 1, 2 or 4
  int scaling;
  int block;  // of PER_BLOCK
  int rounding;
  int option;  // 0 or one of the above
  float spacing;  // of levels, for dither
  int buffer;  // its first among the tensor's pointers; maxima and scales come behind codes
  long long codebook;  // offset in the table; of FACTORS: that of its factors
  long long word;  // first of its maxima in the statistics
};

// The means of a factored v: its rows, its columns, and all of it, over the axes that they do not
// keep.
constexpr int FACTOR_COUNT = 3;
struct Factor {
  long long word;   // first of its largest squares in the statistics
  long long sum;    // first of its sums
  long long fresh;  // first of its new means
  long long count;  // elements of the global tensor that a mean is over
  unsigned axes;    // bits: those that it keeps
  int reserved;
};

// `dtype::Dtype` and `weights::Weights`.
constexpr int DTYPE_F32 = 1;
constexpr int DTYPE_BF16 = 2;
constexpr int DTYPE_F16 = 3;
constexpr int PLAIN = 0;
constexpr int STOCHASTIC_WEIGHTS = 1;
constexpr int MASTER = 2;
constexpr int REMAINDER16 = 3;
constexpr int CORRECTION8 = 4;

// One tensor, or the shard of it that is here. Its pointers are words of the launch: parameter,
// gradient, update, what is kept beside the parameter, then the buffers of its states.
struct Tensor {
  long long rows;
  long long cols;
  long long units;      // blocks of a row; the last one may be short
  long long first_col;  // of the row in the global tensor
  long long param_max;  // of adafactor: the statistics of the whole tensor, their first words
  long long param_sum;
  long long update_max;
  long long update_sum;
  int block;            // elements of a unit: the largest block of its states
  int param_dtype;
  int grad_dtype;
  int weights;
  int group;    // of hyper-parameters
  int scalars;  // the group's first word of scalars among the launch's words
  int index;   // in the plan; its non-finite flag is the statistic of this number
  int global;  // non-zero: its update needs statistics of the whole tensor
  int states;
  int axes;
  int lead;  // axes before the row
  unsigned hash;  // of its name, for random numbers
  int words;      // its first pointer among the launch's words
  unsigned first_row;  // number of the first row in the global tensor, modulo 2^32
  int tile_rows;       // of a task of the fused kernels
  int reserved;
  long long shape[MAX_AXES];
  long long offset[MAX_AXES];
  long long global_shape[MAX_AXES];
  State state[MAX_STATES];
};

constexpr int PARAM = 0;
constexpr int GRAD = 1;
constexpr int UPDATE = 2;
constexpr int BESIDE = 3;
constexpr int STATES = 4;

// Consecutive tasks of one tensor. A list of segments ends with one more that only has `first`.
constexpr int COLLECT = 0;
constexpr int APPLY = 1;
struct Segment {
  long long first;  // number of its first task
  int tensor;       // among those of the launch
  int kind;
};

// ---- the launch --------------------------------------------------------------------------------

// The scalars of one step for one group (`numerics::Scalars`, and what only some tensors need).
struct Scalars {
  float beta1;
  float one_minus_beta1;  // sgdm: 1 - dampening
  float beta2;
  float one_minus_beta2;
  float eps;
  float lr_bc1;        // lr / (1 - beta1^t); without bias correction lr; adafactor: rho
  float lr_wd;         // lr weight_decay; 0 where that is part of the gradient
  float inv_sqrt_bc2;  // 1 / sqrt(1 - beta2^t)
  float grad_scale;    // negated to maximize
  int skip;            // non-zero: the step changes nothing
  float l2;            // weight decay that is part of the gradient (adam, sgdm)
  float inv_bc2;       // 1 / (1 - beta2^t)
};

// Flags of a launch.
constexpr int COUPLED = 1;       // weight decay is part of the gradient
constexpr int AMSGRAD = 2;
constexpr int MAXIMIZE = 4;
constexpr int SKIP_BLOCKS = 8;   // a block with a non-finite gradient stays, unless the tensor is global
constexpr int SKIP_GLOBAL = 16;  // a global tensor with one stays
constexpr int SKIP_TENSORS = 32; // any tensor with one stays
constexpr int SKIP_STEP = 64;    // with one anywhere all tensors stay
constexpr int UPDATES = 128;     // the update is written instead of the parameter
constexpr int SKIP_ALL = 256;    // no tensor changes
constexpr int NESTEROV = 1024;   // the step follows g + beta1 m (sgdm)
constexpr int RELATIVE_STEP = 2048;    // rho falls with the step number (adafactor)
constexpr int SCALE_PARAMETER = 4096;  // alpha rises with RMS(p) (adafactor)
constexpr int FUSED = 512;       // collects and applies in one launch, by tickets

constexpr int LAUNCH_WORDS = 4046;

constexpr int RNG_ROUNDS = 10;  // of random.cuh

struct Launch {
  const unsigned char* table;
  long long tensors;   // offset of the launch's tensors
  long long segments;  // offset of its segments
  long long tasks;
  const float* hyper;  // null: scalars are among the words; else 8 x f32 a group (`numerics::Hyper`)
  const int* step_number;       // of `hyper`
  unsigned long long* skipped;  // null, or two counters: blocks, tensors
  int* statistics;              // the scratch: a flag for each tensor of the plan, then maxima
  int* ticket;                  // of a fused launch: the next task
  int* done;                    // and by tensor of the plan how many have collected
  unsigned long long* sums;     // of the scratch: two limbs each
  float* fresh;                 // and new means
  int* update_maxima;           // of adafactor
  unsigned long long* update_sums;
  unsigned keys[RNG_ROUNDS][2];  // of the rounds of random.cuh, from the seed
  int step;  // without `hyper`
  int flags;
  int groups;
  int tensor_count;  // of the plan
  int state;         // of `compress` and `decompress`
  float decay;       // of `ema`
  float weight;
  float grad_scale;  // of the norm
  float max_norm;
  float dampening;   // of sgdm
  float decay_rate;  // of adafactor
  float eps2;
  float clip_threshold;
  float* norm;         // null, or where the norm goes
  float* clip_factor;  // likewise
  unsigned long long words[LAUNCH_WORDS];
};

static_assert(sizeof(Scalars) == 48, "differs from params.rs");
static_assert(sizeof(State) == 48, "differs from params.rs");
static_assert(sizeof(Factor) == 40, "differs from params.rs");
static_assert(sizeof(Tensor) == 656, "differs from params.rs");
static_assert(sizeof(Launch) <= 32764, "more than a kernel may be given");

}  // namespace lowbit
