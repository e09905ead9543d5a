# What include(${Slicer_EXTENSION_CPACK}) does: what the extension tells of itself is checked, written into the
# description that the Extensions Manager reads, and installed.

if(POLICY CMP0177)
  # Folders to install to begin with ./ in Slicer.
  cmake_policy(SET CMP0177 NEW)
endif()

foreach(_needed HOMEPAGE CONTRIBUTORS DESCRIPTION ICONURL SCREENSHOTURLS DEPENDS)
  if("${EXTENSION_${_needed}}" STREQUAL "")
    message(FATAL_ERROR "EXTENSION_${_needed} is not set, or is empty")
  endif()
endforeach()
if(NOT EXTENSION_NAME STREQUAL PROJECT_NAME)
  # Slicer would skip the packaging without an error.
  message(FATAL_ERROR "the extension is called ${EXTENSION_NAME}, and the project ${PROJECT_NAME}")
endif()
foreach(_file README LICENSE)
  if(DEFINED EXTENSION_${_file}_FILE AND NOT EXISTS "${EXTENSION_${_file}_FILE}")
    message(FATAL_ERROR "EXTENSION_${_file}_FILE points to ${EXTENSION_${_file}_FILE}, which does not exist")
  endif()
endforeach()

# One line each, the key and the rest: a line break in a value would end it.
set(_lines "")
foreach(_key HOMEPAGE CONTRIBUTORS DESCRIPTION ICONURL SCREENSHOTURLS DEPENDS)
  if("${EXTENSION_${_key}}" MATCHES "[\r\n]")
    message(FATAL_ERROR "EXTENSION_${_key} has more than one line")
  endif()
  string(TOLOWER "${_key}" _word)
  string(APPEND _lines "${_word} ${EXTENSION_${_key}}\n")
endforeach()
file(WRITE "${CMAKE_BINARY_DIR}/${EXTENSION_NAME}.s4ext" "${_lines}")
install(
  FILES "${CMAKE_BINARY_DIR}/${EXTENSION_NAME}.s4ext"
  DESTINATION "${Slicer_INSTALL_ROOT}${Slicer_SHARE_DIR}"
  COMPONENT RuntimeLibraries)
