// The product of an expert's matrix with a row of activations, for some pairs of both: eight threads a row of the matrix, each
// with one span of every chunk, in the order of quant/dot.rs.
#version 460
#extension GL_GOOGLE_include_directive : require
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
float partial(uint row, uint x_row, uint t) {
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

int dot4(int a, int b) {
    return bitfieldExtract(a, 0, 8) * bitfieldExtract(b, 0, 8) + bitfieldExtract(a, 8, 8) * bitfieldExtract(b, 8, 8)
        + bitfieldExtract(a, 16, 8) * bitfieldExtract(b, 16, 8) + bitfieldExtract(a, 24, 8) * bitfieldExtract(b, 24, 8);
}

float partial(uint row, uint x_row, uint s) {
    grids = Words(push.grids_at);
    Words acts = Words(push.acts);
    uint n_chunks = (push.cols + 255u) / 256u;
    // The span's first lane; the other half is four on.
    uint p = s + (s & 4u);
    float sum = 0.0;
    for (uint c = 0u; c < n_chunks; c++) {
        if (256u * c + 32u * s >= push.cols) {
            break;
        }
        decode(row * push.row_bytes + c * CHUNK_BYTES, s);
        uint x = (x_row * n_chunks + c) * ACT_WORDS;
        int sums[2];
        for (uint half_span = 0u; half_span < 2u; half_span++) {
            int of_half = 0;
            for (uint k = 0u; k < 4u; k++) {
                of_half += dot4(w[4u * half_span + k], int(acts.at[x + 16u * k + p + 4u * half_span]));
            }
            sums[half_span] = of_half;
        }
        float d = uintBitsToFloat(acts.at[x + ACT_D + s]);
#if defined(FINE)
        int whole = scales_of_halves[0] * sums[0] + scales_of_halves[1] * sums[1];
        int leasts = leasts_of_halves[0] * int(acts.at[x + ACT_H + p]) + leasts_of_halves[1] * int(acts.at[x + ACT_H + p + 4u]);
        float of_span = f_fma(-block_least, float(leasts), f_mul(block_scale, float(whole)));
#elif defined(HALVES)
        float of_span = f_fma(scale_of_second, float(sums[1]), f_mul(scale, float(sums[0])));
#else
        float of_span = f_fma(-least, uintBitsToFloat(acts.at[x + ACT_S + s]), f_mul(scale, float(sums[0] + sums[1])));
#endif
        sum = f_fma(of_span, d, sum);
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
        weights = Words(address_at(pairs, at + PAIR_MATRIX + 2u * role));
        uint x_row = push.by_row != 0u ? pairs.at[at + PAIR_ROW] : pair;
        lanes[gl_LocalInvocationID.x] = partial(row, x_row, t);
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
