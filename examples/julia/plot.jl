# A line plot as an SVG file.

using Printf

const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7"]
const DASHES = ["none", "7 4", "2 3", "10 3 2 3"]

"About `count` ticks, 1, 2 or 5 times a power of ten apart."
function ticks(low, high, count)
    raw = (high - low) / count
    power = exp10(floor(log10(raw)))
    step = power * [1, 2, 5, 10][searchsortedlast([0, 1.5, 3.5, 7.5], raw / power)]
    return step * (ceil(low / step - 1e-9):floor(high / step + 1e-9))
end

"`series` is a list of `name => [(x, y), ...]`; equal curves can be told apart by their dashes."
function write_svg(path, title, x_label, y_label, series)
    points = [point for (_, list) in series for point in list if all(isfinite, point)]
    xs, ys = extrema(first.(points)), extrema(last.(points))
    x(value) = 64 + 632 * (value - xs[1]) / (xs[2] - xs[1])
    y(value) = 364 - 312 * (value - ys[1]) / (ys[2] - ys[1])
    open(path, "w") do io
        print(io, """
            <svg xmlns='http://www.w3.org/2000/svg' width='720' height='420' viewBox='0 0 720 420'
             font-family='Helvetica, Arial, sans-serif' font-size='12' fill='#444'>
            <rect width='720' height='420' fill='#fff'/>
            <text x='64' y='30' font-size='16' font-weight='bold' fill='#111'>$title</text>
            <text x='380' y='406' text-anchor='middle' font-size='13'>$x_label</text>
            <text transform='translate(20 208) rotate(-90)' text-anchor='middle'
             font-size='13'>$y_label</text>
            """)
        for value in ticks(ys..., 6)
            @printf(io, "<path d='M64 %.1fH696' stroke='#e4e4e4'/>\n", y(value))
            @printf(io, "<text x='56' y='%.1f' text-anchor='end'>", y(value) + 4)
            @printf(io, "%.6g</text>\n", value)
        end
        for value in ticks(xs..., 8)
            @printf(io, "<path d='M%.1f 364v5' stroke='#444'/>\n", x(value))
            @printf(io, "<text x='%.1f' y='384' text-anchor='middle'>", x(value))
            @printf(io, "%.6g</text>\n", value)
        end
        println(io, "<path d='M64 364H696' stroke='#444'/>")
        for (i, (name, list)) in enumerate(series)
            line = join((@sprintf("%.1f %.1f", x(a), y(b)) for (a, b) in list if isfinite(b)), 'L')
            row = 50 + 20i
            print(io, """
                <g fill='none' stroke='$(COLOURS[i])' stroke-dasharray='$(DASHES[i])'
                 stroke-width='$(i == 1 ? 2.4 : 1.6)'>
                <path d='M540 $(row)h28'/><path d='M$line'/></g>
                <text x='576' y='$(row + 4)'>$name</text>
                """)
        end
        println(io, "</svg>")
    end
end
