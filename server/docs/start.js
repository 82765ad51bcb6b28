// Shows the contract. The nonce is that of this answer's Content-Security-Policy,
// under which Redoc may make its styles; without a worker and search there is
// nothing that would need more rights.
'use strict';
Redoc.init('/openapi.yaml', {
  nonce: document.querySelector('script[nonce]').nonce,
  disableSearch: true,
  nativeScrollbars: true,
  sanitize: true,
  showExtensions: ['x-unit', 'x-source', 'x-kluis-callers'],
  hideHostname: true,
  expandResponses: '200,201',
  jsonSamplesExpandLevel: 4,
  downloadUrls: [{title: 'YAML', url: '/openapi.yaml'}, {title: 'JSON', url: '/openapi.json'}],
  theme: {
    colors: {primary: {main: '#0b5563'}},
    typography: {
      fontFamily: 'system-ui, sans-serif',
      headings: {fontFamily: 'system-ui, sans-serif', fontWeight: '600'},
      code: {fontFamily: 'ui-monospace, monospace', fontSize: '13px'},
    },
  },
}, document.getElementById('contract'));
