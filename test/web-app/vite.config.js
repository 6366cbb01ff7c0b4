import { defineConfig } from 'vite';

// onnxruntime-web uses several threads only where the page is isolated from other origins.
const headers = { 'Cross-Origin-Opener-Policy': 'same-origin', 'Cross-Origin-Embedder-Policy': 'require-corp' };

export default defineConfig({
  base: './',
  // app.js waits for the model at its top level.
  build: { target: 'es2022' },
  // Vite's development server would move these away from the .wasm file that they look for beside them.
  // What is CommonJS below them it has to convert all the same.
  optimizeDeps: { exclude: ['ort-flash', 'onnxruntime-web'], include: ['ort-flash > protobufjs/minimal.js'] },
  server: { headers },
  preview: { headers },
});
