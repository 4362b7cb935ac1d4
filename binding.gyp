# node-gyp's view of the project: one action that hands over to cmake-js. Not published (see docs/architecture.md).
{
  "targets": [
    {
      "target_name": "lapidary",
      "type": "none",
      "actions": [
        {
          "action_name": "cmake_js_build",
          "inputs": ["native/CMakeLists.txt"],
          "outputs": ["<(PRODUCT_DIR)/.always"],
          "action": ["node", "scripts/build-native.cjs"]
        }
      ]
    }
  ]
}
