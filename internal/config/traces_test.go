package config

import (
	"path/filepath"
	"strings"
	"testing"
)

func TestTraces(t *testing.T) {
	t.Parallel()
	const identity = "tls: {certificate_file: a, key_file: b, ca_file: c}"
	for _, c := range []struct {
		traces string
		begins bool
		want   string // "": accepted
	}{
		{"{endpoint: 127.0.0.1:4317, share: 0.01}", true, ""},
		{"{endpoint: '[::1]:4317', share: 1}", true, ""},
		{"{endpoint: localhost:4317, share: 1}", true, ""},
		{"{endpoint: otel.example:4317, share: 1, " + identity + "}", true, ""},
		{"{endpoint: localhost:4317}", false, ""},
		{"{endpoint: otel.example:4317, share: 1}", true, "traces.tls: is missing"},
		{"{endpoint: 10.0.0.1:4317, share: 1}", true, "traces.tls: is missing"},
		{"{endpoint: localhost.example:4317, share: 1}", true, "traces.tls: is missing"},
		{"{endpoint: otel.example:4317, share: 1, tls: {ca_file: c}}", true, "traces.tls.key_file: is missing"},
		{"{share: 1}", true, "traces.endpoint: must be"},
		{"{endpoint: localhost:0, share: 1}", true, "traces.endpoint: must be"},
		{"{endpoint: 'http://localhost:4317', share: 1}", true, "traces.endpoint: must be"},
		{"{endpoint: localhost:4317}", true, "traces.share: must be"},
		{"{endpoint: localhost:4317, share: 1.5}", true, "traces.share: must be"},
		{"{endpoint: localhost:4317, share: -1}", true, "traces.share: must be"},
		{"{endpoint: localhost:4317, share: 0.5}", false, "traces.share: is the gateway's"},
	} {
		var err error
		if c.begins {
			_, err = Load[Gateway](write(t, "g.yaml", gatewayYAML+"traces: "+c.traces+"\n", 0o644))
		} else {
			_, err = Load[Cryptoserver](write(t, "c.yaml", cryptoserverYAML+"traces: "+c.traces+"\n", 0o644))
		}
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.traces, err, c.want)
		}
	}
	path := write(t, "g.yaml", gatewayYAML+"traces: {endpoint: 'x:1', share: 1, "+identity+"}\n", 0o644)
	g, err := Load[Gateway](path)
	if err != nil {
		t.Fatal(err)
	}
	if want := filepath.Join(filepath.Dir(path), "b"); g.Traces.TLS.KeyFile != want {
		t.Errorf("key_file is %s, want %s", g.Traces.TLS.KeyFile, want)
	}
}
