"The error that `f()` throws; nothing if it throws none."
function caught(f)
    try
        f()
    catch error
        return error
    end
    return nothing
end
