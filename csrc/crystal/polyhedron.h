// A convex polyhedron around the origin, cut plane by plane: the Voronoi cell of one atom as its neighbours arrive.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "vector.h"

namespace pyfast::crystal {

class Polyhedron {
  public:
    struct Face {
        int64_t label;          // what cut it
        std::vector<int> loop;  // its vertices, in order around it
    };
    struct Size {
        double solid_angle, volume;  // seen from the origin; of the pyramid with its apex there
    };

    // The cube [-half, half]^3, its faces labelled -1.
    void cube(double half) {
        x_.clear(), y_.clear(), z_.clear(), free_.clear();
        for (int k = 0; k < 8; ++k) place({k & 1 ? half : -half, k & 2 ? half : -half, k & 4 ? half : -half});
        static constexpr int corners[6][4] = {{0, 2, 6, 4}, {1, 3, 7, 5}, {0, 1, 5, 4},
                                              {2, 3, 7, 6}, {0, 1, 3, 2}, {4, 5, 7, 6}};
        count_ = 0;
        for (const auto& c : corners) push(-1).assign(c, c + 4);
        reach2_ = 3 * half * half;
    }

    // The square of the distance from the origin to its farthest vertex.
    double reach2() const { return reach2_; }

    Vector vertex(int k) const { return {x_[k], y_[k], z_[k]}; }
    const Face* begin() const { return faces_.data(); }
    const Face* end() const { return faces_.data() + count_; }

    // Keep what is nearer to the origin than to p. Vertices that lie on the plane, to rounding, stay and belong to the
    // new face as well: so cuts through vertices, edges and faces, which crystals are full of, are no special cases.
    void cut(const Vector& p, int64_t label) {
        const double half = 0.5 * dot(p, p), tolerance = 1e-12 * std::sqrt(dot(p, p) * reach2_);
        const int n = int(x_.size());
        beyond_.resize(n);
        double most = -1;
#pragma omp simd reduction(max : most)
        for (int k = 0; k < n; ++k) {
            beyond_[k] = p[0] * x_[k] + p[1] * y_[k] + p[2] * z_[k] - half;
            most = std::max(most, beyond_[k]);
        }
        if (most <= tolerance) return;
        side_.resize(n);
        rim_.clear(), crossings_.clear();
        for (int k = 0; k < n; ++k) {
            side_[k] = beyond_[k] > tolerance ? outside : beyond_[k] < -tolerance ? inside : on;
            if (side_[k] == on) rim_.push_back(k);
        }
        int kept = 0;
        for (int f = 0; f < count_; ++f)
            if (shorten(faces_[f])) std::swap(faces_[kept++], faces_[f]);
        count_ = kept;
        for (int k = 0; k < n; ++k)
            if (side_[k] == outside) remove(k);
        if (rim_.size() >= 3) close(p, label);
        reach2_ = 0;
        const int total = int(x_.size());
#pragma omp simd reduction(max : reach2_)
        for (int k = 0; k < total; ++k) reach2_ = std::max(reach2_, x_[k] * x_[k] + y_[k] * y_[k] + z_[k] * z_[k]);
    }

    // As a fan of triangles, whose corners lie in the directions a, b, c: tan(angle / 2) = |a . (b x c)| / (1 + a . b +
    // a . c + b . c), by van Oosterom and Strackee, 1983. The half angles of a face sum to at most pi: they add up as
    // complex numbers multiply.
    Size size(const Face& face) const {
        const Vector a = vertex(face.loop[0]), u = direction(a);
        Vector b = vertex(face.loop[1]), v = direction(b);
        double re = 1, im = 0, volume = 0;
        for (size_t k = 2; k < face.loop.size(); ++k) {
            const Vector c = vertex(face.loop[k]), w = direction(c);
            const double x = 1 + dot(u, v) + dot(u, w) + dot(v, w), y = std::abs(dot(u, cross(v, w)));
            const double length = std::sqrt(x * x + y * y);
            if (length > 0) {
                const double old = re;
                re = (old * x - im * y) / length, im = (im * x + old * y) / length;
            }
            volume += std::abs(dot(a, cross(b, c))) / 6;
            b = c, v = w;
        }
        return {2 * std::atan2(im, re), volume};
    }

  private:
    enum Side : char { inside, on, outside };
    struct Crossing {
        int in, out, vertex;
    };

    static Vector direction(const Vector& a) { return (1 / std::sqrt(dot(a, a))) * a; }

    int place(const Vector& v) {
        if (!free_.empty()) {
            const int k = free_.back();
            free_.pop_back();
            x_[k] = v[0], y_[k] = v[1], z_[k] = v[2];
            return k;
        }
        x_.push_back(v[0]), y_.push_back(v[1]), z_.push_back(v[2]);
        return int(x_.size()) - 1;
    }

    // A vertex that is gone waits at the origin, which no plane cuts off, for its place to be taken.
    void remove(int k) {
        x_[k] = y_[k] = z_[k] = 0;
        free_.push_back(k);
    }

    std::vector<int>& push(int64_t label) {
        if (count_ == int(faces_.size())) faces_.emplace_back();
        faces_[count_].label = label;
        return faces_[count_++].loop;
    }

    // Where the plane cuts an edge: one vertex for both faces that share it.
    int crossing(int in, int out) {
        for (const Crossing& c : crossings_)
            if (c.in == in && c.out == out) return c.vertex;
        const double t = beyond_[in] / (beyond_[in] - beyond_[out]);
        const int k = place(vertex(in) + t * (vertex(out) - vertex(in)));
        crossings_.push_back({in, out, k});
        rim_.push_back(k);
        return k;
    }

    // A face without what is outside; false if nothing is left of it.
    bool shorten(Face& face) {
        const auto& loop = face.loop;
        bool any_in = false, any_out = false;
        for (int k : loop) any_in |= side_[k] == inside, any_out |= side_[k] == outside;
        if (!any_out) return true;
        if (!any_in) return false;
        shorter_.clear();
        for (size_t k = 0; k < loop.size(); ++k) {
            const int u = loop[k], v = loop[k + 1 < loop.size() ? k + 1 : 0];
            if (side_[u] != outside) shorter_.push_back(u);
            if (side_[u] == inside && side_[v] == outside) shorter_.push_back(crossing(u, v));
            if (side_[u] == outside && side_[v] == inside) shorter_.push_back(crossing(v, u));
        }
        face.loop.swap(shorter_);
        return face.loop.size() >= 3;
    }

    // The new face: what lies on the plane, in order of angle around its normal.
    void close(const Vector& p, int64_t label) {
        const int least = std::abs(p[0]) <= std::abs(p[1]) ? (std::abs(p[0]) <= std::abs(p[2]) ? 0 : 2)
                                                           : (std::abs(p[1]) <= std::abs(p[2]) ? 1 : 2);
        Vector axis{};
        axis[least] = 1;
        const Vector u = cross(p, axis), v = (1 / std::sqrt(dot(p, p))) * cross(p, u);
        Vector middle{};
        for (int k : rim_) middle = middle + vertex(k);
        middle = (1.0 / double(rim_.size())) * middle;
        angles_.clear();
        for (int k : rim_) {
            const Vector d = vertex(k) - middle;
            const double a = dot(d, u), b = dot(d, v), sum = std::abs(a) + std::abs(b);
            const double turn = sum > 0 ? a / sum : 1;  // grows as the angle does, without an arc tangent
            angles_.emplace_back(b >= 0 ? 1 - turn : 3 + turn, k);
        }
        std::sort(angles_.begin(), angles_.end());
        auto& loop = push(label);
        loop.clear();
        for (const auto& [angle, k] : angles_) loop.push_back(k);
    }

    std::vector<double> x_, y_, z_;
    std::vector<int> free_;
    std::vector<Face> faces_;  // the first count_ are in use; the memory of the others waits
    int count_ = 0;
    double reach2_ = 0;
    // of the cut under way
    std::vector<double> beyond_;
    std::vector<Side> side_;
    std::vector<int> rim_, shorter_;
    std::vector<Crossing> crossings_;
    std::vector<std::pair<double, int>> angles_;
};

}  // namespace pyfast::crystal
