# Stand-in for the CMake package that a built Slicer offers to extensions: find_package(Slicer) finds this file with
# Slicer_DIR set to its folder. What an extension of scripted modules needs is here, written after Slicer's documented
# behaviour and from none of its files. Nothing is compiled: files are copied and installed where Slicer would have
# them, and what Slicer would refuse is refused.

set(Slicer_VERSION_MAJOR 5)
set(Slicer_VERSION_MINOR 12)
set(Slicer_REVISION "00000")
set(Slicer_OS "standin")
set(Slicer_ARCHITECTURE "none")

# Folders, below the build tree and below where an extension is installed to.
set(Slicer_INSTALL_ROOT "./")
set(Slicer_LIB_DIR "lib/Slicer-${Slicer_VERSION_MAJOR}.${Slicer_VERSION_MINOR}")
set(Slicer_SHARE_DIR "share/Slicer-${Slicer_VERSION_MAJOR}.${Slicer_VERSION_MINOR}")
set(Slicer_QTSCRIPTEDMODULES_LIB_DIR "${Slicer_LIB_DIR}/qt-scripted-modules")
set(Slicer_INSTALL_QTSCRIPTEDMODULES_LIB_DIR "${Slicer_INSTALL_ROOT}${Slicer_QTSCRIPTEDMODULES_LIB_DIR}")

# What CTest starts. Given from outside, it may be Slicer itself or Testing/SlicerHost/launcher.py with its Python.
set(Slicer_LAUNCHER_EXECUTABLE "Slicer" CACHE STRING "Command that starts Slicer")

set(Slicer_USE_FILE "${CMAKE_CURRENT_LIST_DIR}/UseSlicer.cmake")
set(Slicer_EXTENSION_GENERATE_CONFIG "${CMAKE_CURRENT_LIST_DIR}/GenerateConfig.cmake")
set(Slicer_EXTENSION_CPACK "${CMAKE_CURRENT_LIST_DIR}/ExtensionCPack.cmake")
