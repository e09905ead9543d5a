# What include(${Slicer_EXTENSION_GENERATE_CONFIG}) makes: the file with which other extensions find this one.

file(WRITE "${CMAKE_BINARY_DIR}/${EXTENSION_NAME}Config.cmake" "set(${EXTENSION_NAME}_FOUND TRUE)\n")
