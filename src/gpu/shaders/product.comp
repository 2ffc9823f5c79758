// The product of an expert's matrix with a row of activations, for some pairs of both: eight threads a row of the matrix, each
// with one span of every chunk, in the order of quant/dot.rs.
#version 460
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_EXT_spirv_intrinsics : require
#include "memory.glsl"
#include "float.glsl"

layout(local_size_x = 256) in;

layout(push_constant) uniform Push {
    uint64_t pairs;
    // Quantised activations, and the exact ones.
    uint64_t acts;
    uint64_t x;
    // (roles, pairs, n_rows)
    uint64_t y;
    uint64_t grids_at;
    uint n_rows;
    uint cols;
    // Bytes of a row.
    uint row_bytes;
    // Of the first matrix: gate 0, up 1, down 2.
    uint role;
    uint n_pairs;
    // Whether a pair's activations are the row that it names; otherwise they are its own.
    uint by_row;
} push;

// Of 32 rows.
shared float lanes[256];

#ifdef FLOATS

Words weights;

float weight(uint at) {
#if defined(TYPE_F32)
    return uintBitsToFloat(weights.at[at]);
#else
    uint bits = weights.at[at >> 1] >> (at & 1u) * 16u & 65535u;
#if defined(TYPE_BF16)
    return uintBitsToFloat(bits << 16);
#else
    return from_half(bits);
#endif
#endif
}

// Thread t's part of a row's product: lanes t and t + 8 of sixteen, each of two sets.
float partial(uint64_t matrix, uint row, uint x_row, uint t) {
    Floats x = Floats(push.x);
    uint first = row * push.cols, x_first = x_row * push.cols;
    float sums[4] = float[4](0.0, 0.0, 0.0, 0.0);
    for (uint i = 0u; i < push.cols; i += 32u) {
        for (uint k = 0u; k < 4u; k++) {
            uint at = i + 8u * k + t;
            if (at < push.cols) {
                sums[k] = f_fma(weight(first + at), x.at[x_first + at], sums[k]);
            }
        }
    }
    return f_add(f_add(sums[0], sums[2]), f_add(sums[1], sums[3]));
}

#else

#include "decode.glsl"

// Whether the device multiplies four bytes at once.
layout(constant_id = 1) const bool PACKED = false;

spirv_instruction(extensions = ["SPV_KHR_integer_dot_product"], capabilities = [6018, 6019], id = 4450)
int packed_dot(uint a, uint b, spirv_literal int four_bytes);

int dot4(int a, int b) {
    if (PACKED) {
        return packed_dot(uint(a), uint(b), 0);
    }
    return bitfieldExtract(a, 0, 8) * bitfieldExtract(b, 0, 8) + bitfieldExtract(a, 8, 8) * bitfieldExtract(b, 8, 8)
        + bitfieldExtract(a, 16, 8) * bitfieldExtract(b, 16, 8) + bitfieldExtract(a, 24, 8) * bitfieldExtract(b, 24, 8);
}

// What a span of a chunk adds: (a * b + c * e) * d.
struct Term {
    float a, b, c, e, d;
};

// The four words at i, with four of weights.
int dot16(uint first, uvec4 x) {
    return dot4(w[first], int(x.x)) + dot4(w[first + 1u], int(x.y)) + dot4(w[first + 2u], int(x.z))
        + dot4(w[first + 3u], int(x.w));
}

Term term(uint at, uint x, uint s) {
    Words acts = Words(push.acts);
    Quads quads = Quads(push.acts);
    decode(at, s);
    uint from = x / 4u + 2u * s;
    int first = dot16(0u, quads.at[from]), second = dot16(4u, quads.at[from + 1u]);
    float d = uintBitsToFloat(acts.at[x + ACT_D + s]);
#if defined(FINE)
    int whole = scales_of_halves[0] * first + scales_of_halves[1] * second;
    int leasts = leasts_of_halves[0] * int(acts.at[x + ACT_H + 2u * s])
        + leasts_of_halves[1] * int(acts.at[x + ACT_H + 2u * s + 1u]);
    return Term(-block_least, float(leasts), block_scale, float(whole), d);
#elif defined(HALVES)
    return Term(scale_of_second, float(second), scale, float(first), d);
#else
    return Term(-least, uintBitsToFloat(acts.at[x + ACT_S + s]), scale, float(first + second), d);
#endif
}

// Whether a number came up that the device may have flushed.
bool small;

float quick_fma(float a, float b, float c) {
    precise float r = fma(a, b, c);
    small = small || may_be_flushed(a, b, c, r);
    return r;
}

float quick_mul(float a, float b) {
    precise float r = a * b;
    small = small || may_be_flushed(a, b, 0.0, r);
    return r;
}

// Chunks whose weights are asked for before the first of them is added.
const uint AHEAD = 4u;

float partial(uint64_t matrix, uint row, uint x_row, uint s) {
    grids = Words(push.grids_at);
    weight_quads = Quads(matrix);
    if (32u * s >= push.cols) {
        return 0.0;
    }
    uint n = (push.cols - 32u * s + 255u) / 256u;
    uint at = row * push.row_bytes, x = x_row * ((push.cols + 255u) / 256u) * ACT_WORDS;
    float sum = 0.0;
    small = false;
    // Without a branch for each number, so that weights are asked for early; where one was small, all of it again with care.
    for (uint c = 0u; !SOFT && c < n; c += AHEAD) {
        Term terms[AHEAD];
        [[unroll]] for (uint i = 0u; i < AHEAD; i++) {
            uint chunk = min(c + i, n - 1u);
            terms[i] = term(at + chunk * CHUNK_BYTES, x + chunk * ACT_WORDS, s);
        }
        [[unroll]] for (uint i = 0u; i < AHEAD; i++) {
            if (c + i < n) {
                Term next = terms[i];
                sum = quick_fma(quick_fma(next.a, next.b, quick_mul(next.c, next.e)), next.d, sum);
            }
        }
    }
    if (SOFT || small) {
        sum = 0.0;
        for (uint c = 0u; c < n; c++) {
            Term next = term(at + c * CHUNK_BYTES, x + c * ACT_WORDS, s);
            sum = f_fma(f_fma(next.a, next.b, f_mul(next.c, next.e)), next.d, sum);
        }
    }
    return sum;
}

#endif

void main() {
    uint i = gl_LocalInvocationID.x, t = i % 8u, row = gl_WorkGroupID.x * 32u + i / 8u;
    uint pair = gl_WorkGroupID.y, role = push.role + gl_WorkGroupID.z;
    Words pairs = Words(push.pairs);
    uint at = pair * PAIR_WORDS;
    if (row < push.n_rows) {
        uint64_t matrix = address_at(pairs, at + PAIR_MATRIX + 2u * role);
        weights = Words(matrix);
        uint x_row = push.by_row != 0u ? pairs.at[at + PAIR_ROW] : pair;
        lanes[i] = partial(matrix, row, x_row, t);
    }
    barrier();
    // A thread for each row, side by side, so that what they write goes to the host in one piece.
    row = gl_WorkGroupID.x * 32u + i;
    if (i >= 32u || row >= push.n_rows) {
        return;
    }
    uint j = 8u * i;
    float even = f_add(f_add(lanes[j], lanes[j + 4u]), f_add(lanes[j + 2u], lanes[j + 6u]));
    float odd = f_add(f_add(lanes[j + 1u], lanes[j + 5u]), f_add(lanes[j + 3u], lanes[j + 7u]));
    float y = f_add(even, odd);
    float factor = uintBitsToFloat(pairs.at[at + PAIR_SCALE]);
    if (role < 2u && factor != 1.0) {
        y = f_mul(factor, y);
    }
    factor = uintBitsToFloat(pairs.at[at + PAIR_SCALES + role]);
    if (factor != 1.0) {
        y = f_mul(factor, y);
    }
    uint64_t bias = address_at(pairs, at + PAIR_BIAS + 2u * role);
    if (bias != 0ul) {
        y = f_add(Floats(bias).at[row], y);
    }
    Floats(push.y).at[(gl_WorkGroupID.z * push.n_pairs + pair) * push.n_rows + row] = y;
}
