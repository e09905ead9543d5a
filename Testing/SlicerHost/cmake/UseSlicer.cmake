# What include(${Slicer_USE_FILE}) brings: the name of the extension, CTest, and the macros of scripted modules.

if(POLICY CMP0177)
  # Folders to install to begin with ./ in Slicer.
  cmake_policy(SET CMP0177 NEW)
endif()

set(_standin_folder "${CMAKE_CURRENT_LIST_DIR}")
set(EXTENSION_NAME "${PROJECT_NAME}")
include(CTest)

# slicerMacroBuildScriptedModule(NAME … SCRIPTS … RESOURCES … [WITH_GENERIC_TESTS])
#
# Scripts and resources of all modules of an extension meet in one folder, each below its own relative path.
macro(slicerMacroBuildScriptedModule)
  cmake_parse_arguments(_module "WITH_GENERIC_TESTS;VERBOSE" "NAME" "SCRIPTS;RESOURCES" ${ARGN})
  if(_module_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "slicerMacroBuildScriptedModule: unknown keywords: ${_module_UNPARSED_ARGUMENTS}")
  endif()
  if(NOT _module_NAME)
    message(FATAL_ERROR "slicerMacroBuildScriptedModule: NAME is missing")
  endif()
  foreach(_file IN LISTS _module_SCRIPTS _module_RESOURCES)
    if(NOT EXISTS "${CMAKE_CURRENT_SOURCE_DIR}/${_file}")
      message(FATAL_ERROR "slicerMacroBuildScriptedModule: ${_module_NAME} lists ${_file}, which does not exist")
    endif()
    get_property(_taken GLOBAL PROPERTY "_standin_owner_of_${_file}")
    if(_taken)
      # Slicer would let the later one win without a word.
      message(FATAL_ERROR "slicerMacroBuildScriptedModule: ${_module_NAME} and ${_taken} both bring ${_file}")
    endif()
    set_property(GLOBAL PROPERTY "_standin_owner_of_${_file}" "${_module_NAME}")
    get_filename_component(_part "${_file}" DIRECTORY)
    file(COPY "${_file}" DESTINATION "${CMAKE_BINARY_DIR}/${Slicer_QTSCRIPTEDMODULES_LIB_DIR}/${_part}")
    install(
      FILES "${_file}"
      DESTINATION "${Slicer_INSTALL_QTSCRIPTEDMODULES_LIB_DIR}/${_part}"
      COMPONENT RuntimeLibraries)
  endforeach()
  if(BUILD_TESTING AND _module_WITH_GENERIC_TESTS)
    _standin_add_generic_test()
  endif()
endmacro()

# slicer_add_python_unittest(SCRIPT … [SLICER_ARGS …] [TESTNAME_PREFIX …]): the test cases of a file, run in Slicer.
function(slicer_add_python_unittest)
  cmake_parse_arguments(_test "" "SCRIPT;TESTNAME_PREFIX" "SLICER_ARGS" ${ARGN})
  if(_test_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "slicer_add_python_unittest: unknown keywords: ${_test_UNPARSED_ARGUMENTS}")
  endif()
  get_filename_component(_name "${_test_SCRIPT}" NAME_WE)
  if(NOT EXISTS "${CMAKE_CURRENT_SOURCE_DIR}/${_test_SCRIPT}" AND NOT EXISTS "${CMAKE_CURRENT_BINARY_DIR}/${_test_SCRIPT}")
    message(FATAL_ERROR "slicer_add_python_unittest: ${_test_SCRIPT} does not exist")
  endif()
  set(_folders "['${CMAKE_CURRENT_BINARY_DIR}', '${CMAKE_CURRENT_SOURCE_DIR}']")
  add_test(
    NAME "py_${_test_TESTNAME_PREFIX}${_name}"
    COMMAND
      ${Slicer_LAUNCHER_EXECUTABLE} --no-splash --ignore-slicerrc ${_test_SLICER_ARGS} --python-code
      "import slicer.testing; slicer.testing.runUnitTest(${_folders}, '${_name}')")
endfunction()

# The tests of WITH_GENERIC_TESTS, under the name that Slicer gives to them.
function(_standin_add_generic_test)
  set(_name "qSlicer${_module_NAME}ModuleGenericTest")
  configure_file(
    "${_standin_folder}/qSlicerModuleGenericTest.py.in" "${CMAKE_CURRENT_BINARY_DIR}/${_name}.py" @ONLY)
  slicer_add_python_unittest(
    SCRIPT "${_name}.py"
    TESTNAME_PREFIX nomainwindow_
    SLICER_ARGS --no-main-window --disable-cli-modules --additional-module-path
                "${CMAKE_BINARY_DIR}/${Slicer_QTSCRIPTEDMODULES_LIB_DIR}")
endfunction()
