# project() asks for compilers of C and C++, which Slicer's extensions may need and ours does not: it is told that
# they are there, so that the stand-in works on machines that have none.

foreach(_language C CXX)
  set(CMAKE_${_language}_COMPILER "${CMAKE_COMMAND}")
  set(CMAKE_${_language}_COMPILER_ID_RUN TRUE)
  set(CMAKE_${_language}_COMPILER_ID "None")
  set(CMAKE_${_language}_COMPILER_FORCED TRUE)
  set(CMAKE_${_language}_COMPILER_WORKS TRUE)
endforeach()
