package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
)

// maxFile bounds every file this package reads.
const maxFile = 1 << 20

// Duration is a length of time, written "300s" or "5m" (time.ParseDuration).
type Duration time.Duration

// UnmarshalYAML refuses everything but a duration with a unit.
func (d *Duration) UnmarshalYAML(n ast.Node) error {
	s, ok := n.(*ast.StringNode)
	if ok {
		v, err := time.ParseDuration(s.Value)
		if err == nil {
			*d = Duration(v)
			return nil
		}
	}
	return &yaml.SyntaxError{Message: `not a duration: write a number and a unit, as "300s"`, Token: n.GetToken()}
}

// MarshalYAML writes what UnmarshalYAML reads.
func (d Duration) MarshalYAML() (any, error) { return time.Duration(d).String(), nil }

// Load reads, completes with defaults and checks the configuration of one
// process: Load[config.Gateway]("gateway.yaml"). Paths in it are absolute
// afterwards. The error is for the operator: it names the file, the key and,
// for what YAML itself finds, the line and column.
func Load[T interface{ Validate() error }](path string) (T, error) {
	var none, v T
	raw, err := readFile(path)
	if err != nil {
		return none, fmt.Errorf("configuration: %w", err)
	}
	if err := decode(raw, &v); err != nil {
		return none, fmt.Errorf("%s: %w", path, err)
	}
	dir, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		return none, fmt.Errorf("%s: %w", path, err)
	}
	resolve(reflect.ValueOf(&v).Elem(), dir)
	if err := v.Validate(); err != nil {
		return none, fmt.Errorf("%s:\n%w", path, err)
	}
	return v, nil
}

func decode(raw []byte, v any) error {
	if d, ok := v.(interface{ setDefaults() }); ok {
		d.setDefaults()
	}
	dec := yaml.NewDecoder(bytes.NewReader(raw), yaml.Strict())
	switch err := dec.Decode(v); {
	case errors.Is(err, io.EOF):
		return errors.New("is empty")
	case err != nil:
		return errors.New(yaml.FormatError(err, false, true))
	}
	if err := dec.Decode(new(any)); !errors.Is(err, io.EOF) {
		return errors.New("holds more than one YAML document")
	}
	return nil
}

// Write stores a configuration so that Load reads it back, replacing the file
// in one step. It refuses what Load would refuse; relative paths are checked
// by Load only.
func Write[T interface{ Validate() error }](path string, v T) error {
	if err := v.Validate(); err != nil {
		return fmt.Errorf("%s:\n%w", path, err)
	}
	raw, err := yaml.Marshal(v)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".config-*")
	if err != nil {
		return fmt.Errorf("writing configuration: %w", err)
	}
	defer os.Remove(f.Name()) // fails once renamed
	_, err = f.Write(raw)
	if err == nil {
		err = f.Chmod(0o644) // no secrets inside, and its readers run as other users
	}
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("writing configuration: %w", err)
	}
	return nil
}

// resolve makes every non-empty string under a *_file or *_dir key absolute.
func resolve(v reflect.Value, dir string) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			resolve(v.Elem(), dir)
		}
	case reflect.Slice:
		for i := range v.Len() {
			resolve(v.Index(i), dir)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			f := v.Field(i)
			key, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("yaml"), ",")
			if f.Kind() != reflect.String {
				resolve(f, dir)
			} else if p := f.String(); (strings.HasSuffix(key, "_file") || strings.HasSuffix(key, "_dir")) && p != "" && !filepath.IsAbs(p) {
				f.SetString(filepath.Join(dir, p))
			}
		}
	}
}

// readFile reads a regular file of bounded size.
func readFile(path string) ([]byte, error) {
	raw, _, err := readFileMode(path)
	return raw, err
}

func readFileMode(path string) ([]byte, os.FileMode, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	// Of the open file: what is checked is what is read.
	info, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	if !info.Mode().IsRegular() {
		return nil, 0, fmt.Errorf("%s is not a regular file", path)
	}
	raw, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, 0, err
	}
	if len(raw) > maxFile {
		return nil, 0, fmt.Errorf("%s is larger than %d bytes", path, maxFile)
	}
	return raw, info.Mode(), nil
}
