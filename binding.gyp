{
  # One static library a kernel variant, linked into the addon. Sources and options come from bin/sources.js, which
  # CMakeLists.txt asks too.
  'target_defaults': {
    'include_dirs': ['.'],
    # Node's own defaults, which node-gyp hands on.
    'cflags!': ['-fno-omit-frame-pointer'],
    'cflags_cc!': ['-fno-exceptions', '-fno-rtti', '-std=gnu++17', '-std=gnu++20'],
    'cflags_cc': ['<!@(node bin/sources.js options)'],
    'xcode_settings': {
      'CLANG_CXX_LANGUAGE_STANDARD': 'c++20',
      'GCC_ENABLE_CPP_EXCEPTIONS': 'YES',
      'GCC_SYMBOLS_PRIVATE_EXTERN': 'YES',
      'MACOSX_DEPLOYMENT_TARGET': '11.0',
      'OTHER_CPLUSPLUSFLAGS': ['<!@(node bin/sources.js options)'],
    },
    'target_conditions': [
      ['_type == "static_library"', {
        'sources': ['>!@(node bin/sources.js kernels)'],
        'cflags_cc': ['>!@(node bin/sources.js variant-options >(variant) <(target_arch))'],
        'xcode_settings': {
          'OTHER_CPLUSPLUSFLAGS': ['>!@(node bin/sources.js variant-options >(variant) <(target_arch))'],
        },
      }],
    ],
  },
  'targets': [
    {'target_name': 'kernels_baseline', 'type': 'static_library', 'variables': {'variant': 'baseline'}},
    {'target_name': 'kernels_counted', 'type': 'static_library', 'variables': {'variant': 'counted'}},
    {
      'target_name': 'equitensor_cpu',
      'sources': ['<!@(node bin/sources.js common)'],
      'include_dirs': ['<!(node -p "require(\'node-addon-api\').include_dir")'],
      'defines': [
        'NAPI_VERSION=8',
        'NAPI_CPP_EXCEPTIONS',
        'NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS',
        'EQUITENSOR_STAMP="<!(node bin/sources.js stamp)"',
        '<!@(node bin/sources.js variant-defines <(target_arch))',
      ],
      'ldflags': ['<!@(node bin/sources.js link-options)'],
      # The baseline comes first: of an inline function that several variants share, the linker keeps the first copy.
      'dependencies': ['kernels_baseline', 'kernels_counted'],
      'conditions': [
        ['target_arch == "x64"', {'dependencies': ['kernels_avx2', 'kernels_avx512']}],
      ],
    },
  ],
  'conditions': [
    ['target_arch == "x64"', {
      'targets': [
        {'target_name': 'kernels_avx2', 'type': 'static_library', 'variables': {'variant': 'avx2'}},
        {'target_name': 'kernels_avx512', 'type': 'static_library', 'variables': {'variant': 'avx512'}},
      ],
    }],
  ],
}
