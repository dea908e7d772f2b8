-- Return a whole number as text. Without this, large numbers are written in exponent form; from which size on depends
-- on the server.
local function integer(number)
    return string.format("%.0f", number)
end
