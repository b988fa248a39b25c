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
        uint64_t index[blocks], c[4][blocks];
        for (int i = 0; i < blocks; ++i) index[i] = index_ + i;
        random::words<blocks>(seed_, what_, index, c);
        for (int i = 0; i < blocks; ++i) {
            drawn_[2 * i] = random::uniform_of(c[0][i], c[1][i]);
            drawn_[2 * i + 1] = random::uniform_of(c[2][i], c[3][i]);
        }
        index_ += blocks;
        next_ = 0;
    }

    uint64_t seed_, what_, index_ = 0;
    int next_ = size;
    double drawn_[size];
};

}  // namespace pyfast::spn
