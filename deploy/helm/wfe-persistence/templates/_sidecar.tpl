{{/*
The server as a native sidecar, for the pods of a chart that depends on this one with `mode: sidecar`.
Each takes this chart's own scope, `(index .Subcharts "wfe-persistence")`; see ../../example-sidecar.

It starts before the engine and ends after it, so the engine finds it SERVING and may write to the last.
They talk through a Unix socket in a volume that only this pod has.
*/}}

{{/* An item of `initContainers`. */}}
{{- define "wfe-persistence.sidecar.container" -}}
- name: wfe-persistence
  image: {{ include "wfe-persistence.image" . }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  restartPolicy: Always
  envFrom:
    - configMapRef:
        name: {{ include "wfe-persistence.fullname" . }}
  # The engine's containers start when it first succeeds.
  startupProbe:
    exec:
      command: [wfe-persistence, health]
    periodSeconds: 1
    timeoutSeconds: 5
    failureThreshold: 120
  livenessProbe:
    exec:
      command: [wfe-persistence, health, --service, liveness]
    periodSeconds: 20
    timeoutSeconds: 10
    failureThreshold: 3
  resources:
    {{- toYaml .Values.sidecar.resources | nindent 4 }}
  securityContext:
    {{- include "wfe-persistence.containerSecurity" . | nindent 4 }}
    {{- include "wfe-persistence.podSecurity" . | nindent 4 }}
  volumeMounts:
    {{- include "wfe-persistence.sidecar.socketMount" . | nindent 4 }}
    - name: wfe-persistence-db
      mountPath: /etc/wfe-persistence/db
      readOnly: true
{{- end }}

{{/* An item of the engine's own `volumeMounts`: the socket is /run/wfe-persistence/wfe.sock. */}}
{{- define "wfe-persistence.sidecar.socketMount" -}}
- name: wfe-persistence-socket
  mountPath: /run/wfe-persistence
{{- end }}

{{/* Items of `volumes`. */}}
{{- define "wfe-persistence.sidecar.volumes" -}}
- name: wfe-persistence-socket
  emptyDir:
    medium: Memory
    sizeLimit: 1Mi
- name: wfe-persistence-db
  secret:
    secretName: {{ .Values.secrets.database }}
{{- end }}

{{/* Annotations of the pod's template, so that other settings are other pods. */}}
{{- define "wfe-persistence.sidecar.annotations" -}}
checksum/wfe-persistence: {{ include "wfe-persistence.variables" . | sha256sum }}
{{- end }}
