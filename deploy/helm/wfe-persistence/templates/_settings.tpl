{{/* The settings of the database, which the migration needs too. */}}
{{- define "wfe-persistence.databaseSettings" -}}
db-url-file: /etc/wfe-persistence/db/url
log-format: json
{{- end }}

{{/* The settings of each mode. The job migrates, with a role that may; a server waits for it. */}}
{{- define "wfe-persistence.modeSettings" -}}
{{ include "wfe-persistence.databaseSettings" . }}
migrate: false
{{- if eq .Values.mode "sidecar" }}
listen: unix:/run/wfe-persistence/wfe.sock
# The engine may have another user id, and whoever has the volume belongs to the pod.
socket-mode: "0666"
insecure: true
{{- else }}
listen: 0.0.0.0:50052
admin-listen: 0.0.0.0:9464
tls-cert: /etc/wfe-persistence/tls/tls.crt
tls-key: /etc/wfe-persistence/tls/tls.key
policy-file: /etc/wfe-persistence/policy/policy.toml
token-file: /etc/wfe-persistence/tokens/tokens.json
# Some clusters have another issuer: kubectl get --raw /.well-known/openid-configuration
jwt-issuer: https://kubernetes.default.svc.cluster.local
jwt-audience: wfe-persistence
jwt-jwks: https://kubernetes.default.svc/openid/v1/jwks
jwt-jwks-ca: /var/run/secrets/kubernetes.io/serviceaccount/ca.crt
jwt-jwks-token-file: /var/run/secrets/kubernetes.io/serviceaccount/token
{{- end }}
{{- end }}

{{/* The variables of the servers: the mode's settings, and over them those of the values. */}}
{{- define "wfe-persistence.variables" -}}
{{- $settings := include "wfe-persistence.modeSettings" . | fromYaml }}
{{- range $name, $value := .Values.settings }}
{{- $_ := set $settings $name $value }}
{{- end }}
{{- range $name, $value := $settings }}
{{ include "wfe-persistence.variable" $name }}: {{ include "wfe-persistence.text" $value | quote }}
{{- end }}
{{- range $name, $value := .Values.env }}
{{ $name }}: {{ $value | quote }}
{{- end }}
{{- end }}

{{- define "wfe-persistence.variable" -}}
WFE_PERSISTENCE_{{ . | replace "-" "_" | upper }}
{{- end }}

{{/* A value as a variable has it: Helm reads large numbers as floats; of a list, the values. */}}
{{- define "wfe-persistence.text" -}}
{{- if and (kindIs "float64" .) (eq . (floor .)) }}
{{- . | int64 | toString }}
{{- else if kindIs "slice" . }}
{{- join " " . }}
{{- else }}
{{- . | toString }}
{{- end }}
{{- end }}
