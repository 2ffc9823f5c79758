// The product of an expert's matrix with a row of activations, for some pairs of both: eight threads a row of the matrix, each
// with one span of every chunk, in the order of quant/dot.rs.
#version 460
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_EXT_spirv_intrinsics : require
#include "memory.glsl"
#include "float.glsl"

layout(local_size_x = 64) in;

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

shared float lanes[64];

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
layout(constant_id = 2) const bool PACKED = false;

spirv_instruction(extensions = ["SPV_KHR_integer_dot_product"], capabilities = [6018, 6019], id = 4450)
int packed_dot(uint a, uint b, spirv_literal int four_bytes);

int dot4(int a, int b) {
    if (PACKED) {
        return packed_dot(uint(a), uint(b), 0);
    }
    return bitfieldExtract(a, 0, 8) * bitfieldExtract(b, 0, 8) + bitfieldExtract(a, 8, 8) * bitfieldExtract(b, 8, 8)
        + bitfieldExtract(a, 16, 8) * bitfieldExtract(b, 16, 8) + bitfieldExtract(a, 24, 8) * bitfieldExtract(b, 24, 8);
}

// What a span of a chunk adds: a sum that its scale of the activations multiplies.
struct Term {
    float of_span;
    float d;
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
#if defined(FINE)
    int whole = scales_of_halves[0] * first + scales_of_halves[1] * second;
    int leasts = leasts_of_halves[0] * int(acts.at[x + ACT_H + 2u * s])
        + leasts_of_halves[1] * int(acts.at[x + ACT_H + 2u * s + 1u]);
    float of_span = f_fma(-block_least, float(leasts), f_mul(block_scale, float(whole)));
#elif defined(HALVES)
    float of_span = f_fma(scale_of_second, float(second), f_mul(scale, float(first)));
#else
    float of_span = f_fma(-least, uintBitsToFloat(acts.at[x + ACT_S + s]), f_mul(scale, float(first + second)));
#endif
    return Term(of_span, uintBitsToFloat(acts.at[x + ACT_D + s]));
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
    if (SOFT) {
        for (uint c = 0u; c < n; c++) {
            Term next = term(at + c * CHUNK_BYTES, x + c * ACT_WORDS, s);
            sum = f_fma(next.of_span, next.d, sum);
        }
        return sum;
    }
    for (uint c = 0u; c < n; c += AHEAD) {
        Term terms[AHEAD];
        [[unroll]] for (uint i = 0u; i < AHEAD; i++) {
            uint chunk = min(c + i, n - 1u);
            terms[i] = term(at + chunk * CHUNK_BYTES, x + chunk * ACT_WORDS, s);
        }
        [[unroll]] for (uint i = 0u; i < AHEAD; i++) {
            if (c + i < n) {
                sum = f_fma(terms[i].of_span, terms[i].d, sum);
            }
        }
    }
    return sum;
}

#endif

void main() {
    uint t = gl_LocalInvocationID.x % 8u, row = gl_WorkGroupID.x * 8u + gl_LocalInvocationID.x / 8u;
    uint pair = gl_WorkGroupID.y, role = push.role + gl_WorkGroupID.z;
    Words pairs = Words(push.pairs);
    uint at = pair * PAIR_WORDS;
    if (row < push.n_rows) {
        uint64_t matrix = address_at(pairs, at + PAIR_MATRIX + 2u * role);
        weights = Words(matrix);
        uint x_row = push.by_row != 0u ? pairs.at[at + PAIR_ROW] : pair;
        lanes[gl_LocalInvocationID.x] = partial(matrix, row, x_row, t);
    }
    barrier();
    if (t != 0u || row >= push.n_rows) {
        return;
    }
    uint i = gl_LocalInvocationID.x;
    float even = f_add(f_add(lanes[i], lanes[i + 4u]), f_add(lanes[i + 2u], lanes[i + 6u]));
    float odd = f_add(f_add(lanes[i + 1u], lanes[i + 5u]), f_add(lanes[i + 3u], lanes[i + 7u]));
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
