// Weights of one span of 32, of any type: eight words of four signed bytes, and what they are multiplied by.
//
// TYPE_... names the type. HALVES: each 16 have a scale of their own. FINE: these are whole numbers of the block's.

Words weights;
// The same.
Quads weight_quads;

uint byte_at(uint at) {
    return weights.at[at >> 2] >> ((at & 3u) * 8u) & 255u;
}

uint word_at(uint at) {
#if defined(TYPE_Q4_1) || defined(TYPE_Q5_1) || defined(TYPE_Q2_K) || defined(TYPE_IQ4_XS)
    // Words of these begin at words.
    return weights.at[at >> 2];
#else
    // Without a branch, so that words in a row are read once each.
    uint shift = (at & 3u) * 8u;
    return weights.at[at >> 2] >> shift | weights.at[(at >> 2) + 1u] << 1u << (31u - shift);
#endif
}

uint half_word_at(uint at) {
    return byte_at(at) | byte_at(at + 1u) << 8;
}

float half_at(uint at) {
    return from_half(half_word_at(at));
}

// Bytes below 128, each less n, which is at most 128.
uint less(uint bytes, uint n) {
    return ((bytes | 0x80808080u) - n * 0x01010101u) ^ 0x80808080u;
}

// The lowest bit of each byte: bits 0 to 3.
uint spread(uint bits) {
    return (bits & 1u) | (bits & 2u) << 7 | (bits & 4u) << 14 | (bits & 8u) << 21;
}

// Magnitudes below 128, negative where a bit of four is set.
uint with_signs(uint magnitudes, uint bits) {
    uint negative = spread(bits) * 255u;
    return (0x80808080u + (magnitudes & ~negative) - (magnitudes & negative)) ^ 0x80808080u;
}

// Seven signs, and an eighth that makes the number of negative ones even.
uint even_signs(uint bits) {
    bits &= 127u;
    return bits | (uint(bitCount(bits)) & 1u) << 7;
}

#if defined(TYPE_IQ4_NL) || defined(TYPE_IQ4_XS)
// -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113
const uint VALUES[4] = uint[4](0xbfad9881u, 0xf6eaddcfu, 0x26190d01u, 0x71594535u);
#elif defined(TYPE_MXFP4) || defined(TYPE_NVFP4)
// 0, 1, 2, 3, 4, 6, 8, 12, and the same below zero
const uint VALUES[4] = uint[4](0x03020100u, 0x0c080604u, 0xfdfeff00u, 0xf4f8fafcu);
#else
const uint VALUES[4] = uint[4](0u, 0u, 0u, 0u);
#endif

uint value(uint i) {
    return VALUES[i >> 2] >> ((i & 3u) * 8u) & 255u;
}

// The values that four bytes below 16 name.
uint values(uint i) {
    return value(i & 15u) | value(i >> 8 & 15u) << 8 | value(i >> 16 & 15u) << 16 | value(i >> 24 & 15u) << 24;
}

// The header of a block of Q4_K or Q5_K: its scale and minimum, and the six-bit ones of span s.
void header_k4(uvec4 header, uint s, out float scale, out float least) {
    uint shift = 8u * (s & 3u), low = header.y >> shift & 255u, high = header.z >> shift & 255u;
    uint n = low & 63u, m = high & 63u;
    if (s >= 4u) {
        uint both = header.w >> shift & 255u;
        n = (both & 15u) | low >> 6 << 4;
        m = both >> 4 | high >> 6 << 4;
    }
    scale = from_half(header.x & 65535u) * float(n);
    least = from_half(header.x >> 16) * float(m);
}

// Where the types' vectors begin among the grids, in words: see `grids` in kernels.rs.
const uint IQ2_XXS = 0u, IQ2_XS = 512u, IQ2_S = 1536u, IQ3_XXS = 3584u, IQ3_S = 3840u, IQ1 = 4352u;

Words grids;

int w[8];
// Of the whole span, or of its halves.
float scale, scale_of_second, least;
// Of FINE types: the block's scale and minimum, and how many of them for each half.
float block_scale, block_least;
int scales_of_halves[2], leasts_of_halves[2];

// Reads span s of the chunk whose bytes begin at `at`.
void decode(uint at, uint s) {
    least = 0.0;
#if defined(TYPE_Q4_0)
    at += 18u * s;
    scale = half_at(at);
    for (uint k = 0u; k < 4u; k++) {
        uint q = word_at(at + 2u + 4u * k);
        w[k] = int(less(q & 0x0f0f0f0fu, 8u));
        w[k + 4u] = int(less(q >> 4 & 0x0f0f0f0fu, 8u));
    }
#elif defined(TYPE_Q4_1)
    at += 20u * s;
    scale = half_at(at);
    least = -half_at(at + 2u);
    for (uint k = 0u; k < 4u; k++) {
        uint q = word_at(at + 4u + 4u * k);
        w[k] = int(q & 0x0f0f0f0fu);
        w[k + 4u] = int(q >> 4 & 0x0f0f0f0fu);
    }
#elif defined(TYPE_Q5_0)
    at += 22u * s;
    scale = half_at(at);
    uint high = word_at(at + 2u);
    for (uint k = 0u; k < 4u; k++) {
        uint q = word_at(at + 6u + 4u * k);
        w[k] = int(less(q & 0x0f0f0f0fu | spread(high >> 4u * k) << 4, 16u));
        w[k + 4u] = int(less(q >> 4 & 0x0f0f0f0fu | spread(high >> 16u + 4u * k) << 4, 16u));
    }
#elif defined(TYPE_Q5_1)
    at += 24u * s;
    scale = half_at(at);
    least = -half_at(at + 2u);
    uint high = word_at(at + 4u);
    for (uint k = 0u; k < 4u; k++) {
        uint q = word_at(at + 8u + 4u * k);
        w[k] = int(q & 0x0f0f0f0fu | spread(high >> 4u * k) << 4);
        w[k + 4u] = int(q >> 4 & 0x0f0f0f0fu | spread(high >> 16u + 4u * k) << 4);
    }
#elif defined(TYPE_Q8_0)
    at += 34u * s;
    scale = half_at(at);
    for (uint k = 0u; k < 8u; k++) {
        w[k] = int(word_at(at + 2u + 4u * k));
    }
#elif defined(TYPE_Q2_K)
    block_scale = half_at(at + 80u);
    block_least = half_at(at + 82u);
    for (uint i = 0u; i < 2u; i++) {
        uint both = byte_at(at + 2u * s + i);
        scales_of_halves[i] = int(both & 15u);
        leasts_of_halves[i] = int(both >> 4);
    }
    for (uint k = 0u; k < 8u; k++) {
        w[k] = int(word_at(at + 16u + s / 4u * 32u + 4u * k) >> (s % 4u * 2u) & 0x03030303u);
    }
#elif defined(TYPE_Q3_K)
    block_scale = half_at(at + 108u);
    block_least = 0.0;
    for (uint i = 0u; i < 2u; i++) {
        uint j = 2u * s + i;
        uint low = byte_at(at + 96u + j % 8u) >> (4u * (j / 8u)) & 15u;
        uint high = byte_at(at + 104u + j % 4u) >> (2u * (j / 4u)) & 3u;
        scales_of_halves[i] = int(low | high << 4) - 32;
        leasts_of_halves[i] = 0;
    }
    for (uint k = 0u; k < 8u; k++) {
        uint low = word_at(at + 32u + s / 4u * 32u + 4u * k) >> (s % 4u * 2u) & 0x03030303u;
        uint high = word_at(at + 4u * k) >> s & 0x01010101u;
        w[k] = int(less(low | high << 2, 4u));
    }
#elif defined(TYPE_Q4_K)
    uint quad = at / 16u;
    header_k4(weight_quads.at[quad], s, scale, least);
    for (uint i = 0u; i < 2u; i++) {
        uvec4 q = weight_quads.at[quad + 1u + s / 2u * 2u + i] >> (s % 2u * 4u) & 0x0f0f0f0fu;
        for (uint k = 0u; k < 4u; k++) {
            w[4u * i + k] = int(q[k]);
        }
    }
#elif defined(TYPE_Q5_K)
    uint quad = at / 16u;
    header_k4(weight_quads.at[quad], s, scale, least);
    for (uint i = 0u; i < 2u; i++) {
        uvec4 low = weight_quads.at[quad + 3u + s / 2u * 2u + i] >> (s % 2u * 4u) & 0x0f0f0f0fu;
        uvec4 q = low | (weight_quads.at[quad + 1u + i] >> s & 0x01010101u) << 4;
        for (uint k = 0u; k < 4u; k++) {
            w[4u * i + k] = int(q[k]);
        }
    }
#elif defined(TYPE_Q6_K)
    block_scale = half_at(at + 208u);
    block_least = 0.0;
    for (uint i = 0u; i < 2u; i++) {
        scales_of_halves[i] = bitfieldExtract(int(byte_at(at + 192u + 2u * s + i)), 0, 8);
        leasts_of_halves[i] = 0;
    }
    for (uint k = 0u; k < 8u; k++) {
        uint low = word_at(at + s / 4u * 64u + s % 2u * 32u + 4u * k) >> (s / 2u % 2u * 4u) & 0x0f0f0f0fu;
        uint high = word_at(at + 128u + s / 4u * 32u + 4u * k) >> (s % 4u * 2u) & 0x03030303u;
        w[k] = int(less(low | high << 4, 32u));
    }
#elif defined(TYPE_IQ4_NL)
    at += 18u * s;
    scale = half_at(at);
    for (uint k = 0u; k < 4u; k++) {
        uint q = word_at(at + 2u + 4u * k);
        w[k] = int(values(q));
        w[k + 4u] = int(values(q >> 4));
    }
#elif defined(TYPE_IQ4_XS)
    uint low = byte_at(at + 4u + s / 2u) >> (s % 2u * 4u) & 15u;
    uint high = half_word_at(at + 2u) >> (2u * s) & 3u;
    scale = half_at(at) * (float(low | high << 4) - 32.0);
    for (uint k = 0u; k < 4u; k++) {
        uint q = word_at(at + 8u + 16u * s + 4u * k);
        w[k] = int(values(q));
        w[k + 4u] = int(values(q >> 4));
    }
#elif defined(TYPE_MXFP4)
    at += 17u * s;
    uint e = byte_at(at);
    scale = uintBitsToFloat(e < 2u ? 0x00200000u << e : (e - 1u) << 23);
    for (uint k = 0u; k < 4u; k++) {
        uint q = word_at(at + 1u + 4u * k);
        w[k] = int(values(q));
        w[k + 4u] = int(values(q >> 4));
    }
#elif defined(TYPE_NVFP4)
    at += 36u * (s / 2u);
    for (uint i = 0u; i < 2u; i++) {
        uint group = s % 2u * 2u + i;
        uint bits = byte_at(at + group);
        uint exponent = bits >> 3 & 15u;
        float fraction = float(bits & 7u);
        float power = uintBitsToFloat((116u + max(exponent, 1u)) << 23); // 2^(exponent - 11)
        float of_group = bits == 127u ? 0.0 : (exponent == 0u ? fraction : 8.0 + fraction) * power;
        if (i == 0u) {
            scale = of_group;
        } else {
            scale_of_second = of_group;
        }
        for (uint k = 0u; k < 2u; k++) {
            uint q = word_at(at + 4u + 8u * group + 4u * k);
            w[4u * i + k] = int(values(q));
            w[4u * i + k + 2u] = int(values(q >> 4));
        }
    }
#elif defined(TYPE_IQ2_XXS)
    uint signs = word_at(at + 6u + 8u * s);
    scale = half_at(at) * (0.5 + float(signs >> 28)) * 0.25;
    for (uint i = 0u; i < 4u; i++) {
        uint vector = IQ2_XXS + 2u * byte_at(at + 2u + 8u * s + i), bits = even_signs(signs >> 7u * i);
        w[2u * i] = int(with_signs(grids.at[vector], bits));
        w[2u * i + 1u] = int(with_signs(grids.at[vector + 1u], bits >> 4));
    }
#elif defined(TYPE_IQ2_XS)
    uint nibbles = byte_at(at + 66u + s);
    scale = half_at(at) * (0.5 + float(nibbles & 15u)) * 0.25;
    scale_of_second = half_at(at) * (0.5 + float(nibbles >> 4)) * 0.25;
    for (uint i = 0u; i < 4u; i++) {
        uint number = half_word_at(at + 2u + 8u * s + 2u * i);
        uint vector = IQ2_XS + 2u * (number & 511u), bits = even_signs(number >> 9);
        w[2u * i] = int(with_signs(grids.at[vector], bits));
        w[2u * i + 1u] = int(with_signs(grids.at[vector + 1u], bits >> 4));
    }
#elif defined(TYPE_IQ2_S)
    uint nibbles = byte_at(at + 74u + s), high = byte_at(at + 66u + s);
    scale = half_at(at) * (0.5 + float(nibbles & 15u)) * 0.25;
    scale_of_second = half_at(at) * (0.5 + float(nibbles >> 4)) * 0.25;
    for (uint i = 0u; i < 4u; i++) {
        uint number = byte_at(at + 2u + 4u * s + i) | (high >> 2u * i & 3u) << 8;
        uint vector = IQ2_S + 2u * number, bits = byte_at(at + 34u + 4u * s + i);
        w[2u * i] = int(with_signs(grids.at[vector], bits));
        w[2u * i + 1u] = int(with_signs(grids.at[vector + 1u], bits >> 4));
    }
#elif defined(TYPE_IQ3_XXS)
    uint signs = word_at(at + 66u + 4u * s);
    scale = half_at(at) * (0.5 + float(signs >> 28)) * 0.5;
    for (uint k = 0u; k < 8u; k++) {
        uint vector = grids.at[IQ3_XXS + byte_at(at + 2u + 8u * s + k)];
        w[k] = int(with_signs(vector, even_signs(signs >> 7u * (k / 2u)) >> 4u * (k % 2u)));
    }
#elif defined(TYPE_IQ3_S)
    scale = half_at(at) * (1.0 + 2.0 * float(byte_at(at + 106u + s / 2u) >> (s % 2u * 4u) & 15u));
    uint high = byte_at(at + 66u + s);
    for (uint k = 0u; k < 8u; k++) {
        uint number = byte_at(at + 2u + 8u * s + k) | (high >> k & 1u) << 8;
        uint bits = byte_at(at + 74u + 4u * s + k / 2u) >> 4u * (k % 2u);
        w[k] = int(with_signs(grids.at[IQ3_S + number], bits));
    }
#elif defined(TYPE_IQ1_S)
    uint high = half_word_at(at + 34u + 2u * s);
    scale = half_at(at) * (2.0 * float(high >> 12 & 7u) + 1.0) * 0.125;
    for (uint i = 0u; i < 4u; i++) {
        uint vector = IQ1 + 2u * (byte_at(at + 2u + 4u * s + i) | (high >> 3u * i & 7u) << 8);
        uint n = high >> 15 == 1u ? 9u : 7u;
        w[2u * i] = int(less(grids.at[vector], n));
        w[2u * i + 1u] = int(less(grids.at[vector + 1u], n));
    }
#elif defined(TYPE_IQ1_M)
    uint own = 0u;
    for (uint i = 0u; i < 4u; i++) {
        own |= half_word_at(at + 48u + 2u * i) >> 12 << 4u * i;
    }
    float of_block = from_half(own);
    for (uint i = 0u; i < 2u; i++) {
        uint group = 2u * s + i;
        float n = float(half_word_at(at + 48u + 2u * (group / 4u)) >> (group % 4u * 3u) & 7u);
        float of_group = of_block * (2.0 * n + 1.0) * 0.125;
        if (i == 0u) {
            scale = of_group;
        } else {
            scale_of_second = of_group;
        }
    }
    for (uint i = 0u; i < 4u; i++) {
        uint high = byte_at(at + 32u + 2u * s + i / 2u) >> (i % 2u * 4u);
        uint vector = IQ1 + 2u * (byte_at(at + 4u * s + i) | (high & 7u) << 8);
        uint n = (high & 8u) != 0u ? 9u : 7u;
        w[2u * i] = int(less(grids.at[vector], n));
        w[2u * i + 1u] = int(less(grids.at[vector + 1u], n));
    }
#elif defined(TYPE_Q1_0)
    at += 18u * (s / 4u);
    scale = half_at(at);
    uint bits = word_at(at + 2u + 4u * (s % 4u));
    for (uint k = 0u; k < 8u; k++) {
        w[k] = int(less(spread(bits >> 4u * k) << 1, 1u));
    }
#elif defined(TYPE_Q2_0)
    at += 18u * (s / 2u);
    scale = half_at(at);
    for (uint k = 0u; k < 8u; k++) {
        uint q = byte_at(at + 2u + 8u * (s % 2u) + k);
        w[k] = int(less((q & 3u) | (q & 12u) << 6 | (q & 48u) << 12 | (q & 192u) << 18, 1u));
    }
#elif defined(TYPE_TQ1_0)
    scale = half_at(at + 52u);
    const uint POWERS[5] = uint[5](1u, 3u, 9u, 27u, 81u);
    for (uint k = 0u; k < 8u; k++) {
        uint q = 0u;
        for (uint i = 0u; i < 4u; i++) {
            uint element = 32u * s + 4u * k + i, from, digit;
            if (element < 160u) {
                from = element % 32u;
                digit = element / 32u;
            } else if (element < 240u) {
                from = 32u + (element - 160u) % 16u;
                digit = (element - 160u) / 16u;
            } else {
                from = 48u + (element - 240u) % 4u;
                digit = (element - 240u) / 4u;
            }
            q |= ((byte_at(at + from) * POWERS[digit] & 255u) * 3u >> 8) << 8u * i;
        }
        w[k] = int(less(q, 1u));
    }
#elif defined(TYPE_TQ2_0)
    scale = half_at(at + 64u);
    for (uint k = 0u; k < 8u; k++) {
        w[k] = int(less(word_at(at + s / 4u * 32u + 4u * k) >> (s % 4u * 2u) & 0x03030303u, 1u));
    }
#endif
}
