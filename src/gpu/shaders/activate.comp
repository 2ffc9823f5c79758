// What lies between gate, up and down: the activation, and the hidden row quantised as quant/act.rs does. A workgroup makes one
// chunk of 256 of one pair's row: a thread for each half of a span and each of the eight steps that its magnitude may become.
#version 460
#extension GL_GOOGLE_include_directive : require
#include "memory.glsl"
#include "float.glsl"

layout(local_size_x = 128) in;

layout(push_constant) uniform Push {
    // Gate, then up. (2, pairs, n_ff)
    uint64_t gate;
    // The hidden rows, exact and quantised. (pairs, n_ff)
    uint64_t hidden;
    uint64_t acts;
    uint n_ff;
    uint n_pairs;
    // SiLU 0, ReLU 1, none 2.
    uint kind;
} push;

const uint TINY = 0x05800000u; // 2^-116

shared float row[256];
shared float inverses[8];
// (spans, steps, halves)
shared vec2 sums[128];
// Of each span: the step that fits best, or 0, and the scale.
shared float steps[8], scales[8];
// Of each sixteen.
shared int totals[16];

float activated(float g, float u) {
    if (push.kind == 2u) {
        return g;
    }
    if (push.kind == 1u) {
        return f_mul(g > 0.0 ? g : 0.0, u);
    }
    return f_mul(f_div(g, f_add(f_exp(f_mul(g, -1.0)), 1.0)), u);
}

int integer(uint i) {
    uint span = i / 32u;
    return int(roundEven(f_mul(f_mul(row[i], inverses[span]), steps[span])));
}

void main() {
    uint t = gl_LocalInvocationID.x, chunk = gl_WorkGroupID.x, pair = gl_WorkGroupID.y;
    Floats gate = Floats(push.gate), hidden = Floats(push.hidden);
    for (uint i = t; i < 256u; i += 128u) {
        uint at = 256u * chunk + i;
        float h = 0.0;
        if (at < push.n_ff) {
            uint from = pair * push.n_ff + at;
            h = activated(gate.at[from], push.kind == 2u ? 0.0 : gate.at[push.n_pairs * push.n_ff + from]);
            hidden.at[from] = h;
        }
        row[i] = h;
    }
    barrier();
    if (t < 8u) {
        // As bits, so that an infinity or NaN wins over every number.
        uint largest = 0u;
        for (uint i = 0u; i < 32u; i++) {
            largest = max(largest, floatBitsToUint(row[32u * t + i]) & ~SIGN);
        }
        scales[t] = uintBitsToFloat(largest);
        inverses[t] = largest < TINY || !is_finite(largest) ? 0.0 : f_div(1.0, uintBitsToFloat(largest));
    }
    barrier();
    uint span = t / 16u, candidate = t / 2u % 8u, first = 32u * span + 16u * (t % 2u);
    float factor = 127.0 - float(candidate);
    vec2 sum = vec2(0.0);
    if (inverses[span] != 0.0) {
        for (uint i = 0u; i < 16u; i++) {
            float x = f_mul(row[first + i], inverses[span]);
            float q = roundEven(f_mul(x, factor));
            sum.x = f_fma(x, q, sum.x);
            sum.y += q * q; // exact
        }
    }
    sums[t] = sum;
    barrier();
    if (t < 8u) {
        float largest = scales[t], best_xq = 0.0, best_qq = 1.0, step = 0.0;
        for (uint i = 0u; i < 8u; i++) {
            vec2 a = sums[16u * t + 2u * i], b = sums[16u * t + 2u * i + 1u];
            float xq = f_add(a.x, b.x), qq = a.y + b.y; // the second exact
            if (f_mul(f_mul(xq, xq), best_qq) > f_mul(f_mul(best_xq, best_xq), qq)) {
                best_xq = xq;
                best_qq = qq;
                step = 127.0 - float(i);
            }
        }
        steps[t] = step;
        if (!is_finite(floatBitsToUint(largest))) {
            scales[t] = uintBitsToFloat(0x7fc00000u);
        } else {
            scales[t] = inverses[t] == 0.0 ? 0.0 : f_mul(largest, f_div(best_xq, best_qq));
        }
    }
    barrier();
    Words acts = Words(push.acts);
    uint out_at = (pair * ((push.n_ff + 255u) / 256u) + chunk) * ACT_WORDS;
    if (t < 64u) {
        uint from = 4u * t, bytes = 0u;
        for (uint b = 0u; b < 4u; b++) {
            // A span without a scale has no integers: its steps are 0, and a NaN must not be made one.
            int q = steps[from / 32u] == 0.0 ? 0 : integer(from + b);
            bytes |= (uint(q) & 255u) << 8u * b;
        }
        acts.at[out_at + t] = bytes;
    } else if (t < 80u) {
        uint group = t - 64u, from = 16u * group;
        int total = 0;
        if (steps[from / 32u] != 0.0) {
            for (uint i = 0u; i < 16u; i++) {
                total += integer(from + i);
            }
        }
        totals[group] = total;
        acts.at[out_at + ACT_H + group] = uint(total);
    }
    barrier();
    if (t < 8u) {
        acts.at[out_at + ACT_D + t] = floatBitsToUint(scales[t]);
        acts.at[out_at + ACT_S + t] = floatBitsToUint(float(totals[2u * t] + totals[2u * t + 1u]));
    }
}
