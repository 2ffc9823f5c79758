// What the other shaders compute with, on given numbers: for the self-test.
#version 460
#extension GL_GOOGLE_include_directive : require
#include "memory.glsl"
#include "float.glsl"

layout(local_size_x = 64) in;

layout(push_constant) uniform Push {
    // (n, 3)
    uint64_t from;
    // Products and sums rounded once, products, sums, quotients, exponentials. (n, 5)
    uint64_t to;
    uint n;
} push;

void main() {
    uint i = gl_GlobalInvocationID.x;
    if (i >= push.n) {
        return;
    }
    Floats from = Floats(push.from), to = Floats(push.to);
    float a = from.at[3u * i], b = from.at[3u * i + 1u], c = from.at[3u * i + 2u];
    to.at[5u * i] = f_fma(a, b, c);
    to.at[5u * i + 1u] = f_mul(a, b);
    to.at[5u * i + 2u] = f_add(a, b);
    to.at[5u * i + 3u] = f_div(a, b);
    to.at[5u * i + 4u] = f_exp(a);
}
