// The random numbers of one sample's update, in the order in which it asks for them.
#pragma once

#include "random.h"

namespace pyfast::spn {

// Draw 2 i and draw 2 i + 1 are the two halves of random::bits(seed, what, sample << 28 | i), as doubles in [0, 1).
class Draws {
  public:
    Draws(uint64_t seed, uint64_t what) : seed_(seed), what_(what) {}

    void begin(int64_t sample) {
        index_ = uint64_t(sample) << 28;
        next_ = size;
    }

    double operator()() {
        if (next_ == size) fill();
        return drawn_[next_++];
    }

  private:
    static constexpr int blocks = 8, size = 2 * blocks;

    void fill() {
        // random::bits of eight indices side by side, a word in each lane of 64 bits
        uint64_t c0[blocks], c1[blocks], c2[blocks], c3[blocks];
        for (int i = 0; i < blocks; ++i) {
            c0[i] = uint32_t(index_ + i);
            c1[i] = (index_ + i) >> 32;
            c2[i] = uint32_t(what_);
            c3[i] = what_ >> 32;
        }
        uint64_t k0 = uint32_t(seed_), k1 = seed_ >> 32;
        for (int round = 0; round < 10; ++round) {
            for (int i = 0; i < blocks; ++i) {
                const uint64_t a = uint64_t(0xD2511F53) * uint32_t(c0[i]), b = uint64_t(0xCD9E8D57) * uint32_t(c2[i]);
                c0[i] = (b >> 32) ^ c1[i] ^ k0;
                c1[i] = uint32_t(b);
                c2[i] = (a >> 32) ^ c3[i] ^ k1;
                c3[i] = uint32_t(a);
            }
            k0 = uint32_t(k0 + 0x9E3779B9);
            k1 = uint32_t(k1 + 0xBB67AE85);
        }
        for (int i = 0; i < blocks; ++i) {
            drawn_[2 * i] = double(int64_t((c0[i] << 32 | c1[i]) >> 11)) * 0x1p-53;
            drawn_[2 * i + 1] = double(int64_t((c2[i] << 32 | c3[i]) >> 11)) * 0x1p-53;
        }
        index_ += blocks;
        next_ = 0;
    }

    uint64_t seed_, what_, index_ = 0;
    int next_ = size;
    double drawn_[size];
};

}  // namespace pyfast::spn
